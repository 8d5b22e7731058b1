"""The transformer, its two small text encoders, and how they run while they are trained.

A token of small clips stands for several of a full one, so its RoPE position is the middle of those: the frame has the
same coordinates at both sizes.

Shapes: B clips, C channels, F frames, H height, W width; small letters are of latents.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from scripts.train_world.checkpoint import module_tensors
from scripts.train_world.text import TextConfig, build_text

BACKENDS: dict[str, list[SDPBackend] | None] = {
    "auto": None,
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    "cudnn": [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ],
}


@dataclass(frozen=True)
class TransformerConfig:
    """Size of the transformer and its text encoders."""

    heads: int = 4
    head_dim: int = 64
    dual_layers: int = 2
    single_layers: int = 6
    refiner_layers: int = 1
    mlp_ratio: float = 2.0
    rope_axes: tuple[int, int, int] = (16, 24, 24)
    latent_channels: int = 8
    text: TextConfig = field(default_factory=TextConfig)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "TransformerConfig":
        """Inverse of ``dataclasses.asdict`` after a way through JSON."""
        rope = tuple(values["rope_axes"])
        return TransformerConfig(**{**values, "rope_axes": rope, "text": TextConfig(**values["text"])})


class UnmaskedAttnProcessor(HunyuanVideoAttnProcessor2_0):
    """The model's own attention without its mask, which says nothing when no caption is padded but bars flash
    attention. The arguments are spelled out: ``Attention.forward`` drops those it does not find in the signature."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,  # noqa: ARG002
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        return super().__call__(attn, hidden_states, encoder_hidden_states, None, image_rotary_emb)


class StridedRope(nn.Module):
    """RoPE of a grid whose cells are ``stride`` cells of the full-size grid wide; stride 1 is the model's own."""

    def __init__(self, axes: tuple[int, int, int], theta: float, stride: float) -> None:
        super().__init__()
        self.axes, self.theta, self.stride = axes, theta, stride

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [f * h * w, head_dim] for latents [B, C, f, h, w]."""
        frames, height, width = hidden_states.shape[2:]
        time, *space = (
            torch.arange(n, device=hidden_states.device, dtype=torch.float32) for n in (frames, height, width)
        )
        space = [(axis + 0.5) * self.stride - 0.5 for axis in space]
        grid = torch.meshgrid(time, *space, indexing="ij")
        tables = [
            get_1d_rotary_pos_embed(dim, positions.reshape(-1), self.theta, use_real=True)
            for dim, positions in zip(self.axes, grid, strict=True)
        ]
        return torch.cat([cos for cos, _ in tables], dim=1), torch.cat([sin for _, sin in tables], dim=1)


def build_transformer(config: TransformerConfig) -> HunyuanVideoTransformer3DModel:
    """A transformer whose blocks start as the identity: gates, modulation and output are zero."""
    model = HunyuanVideoTransformer3DModel(
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        num_layers=config.dual_layers,
        num_single_layers=config.single_layers,
        num_refiner_layers=config.refiner_layers,
        mlp_ratio=config.mlp_ratio,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=False,
        text_embed_dim=config.text.llama_width,
        pooled_projection_dim=config.text.clip_width,
        rope_axes_dim=config.rope_axes,
    )
    zero = [model.proj_out, model.norm_out.linear]
    for block in model.transformer_blocks:
        zero += [block.norm1.linear, block.norm1_context.linear]
    zero += [block.norm.linear for block in model.single_transformer_blocks]
    zero += [block.norm_out.linear for block in model.context_embedder.token_refiner.refiner_blocks]
    for layer in zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def prepare_for_training(model: HunyuanVideoTransformer3DModel, *, compiled: bool = False, mixed: bool = False) -> None:
    """Attention without masks, and blocks ``compiled`` on request, for clips of several sizes if ``mixed``. Parameters
    and their names stay as they are."""
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        block.attn.set_processor(UnmaskedAttnProcessor())
        if compiled:
            block.forward = _compiled(block.forward, mixed=mixed)


def _compiled(eager: Callable[..., Any], *, mixed: bool = False) -> Callable[..., Any]:
    """A block's ``forward``, compiled once for all lengths of captions and once for predictions without a caption.

    Steps on empty captions run as they are: a length of 1 would need a graph of its own, which costs more to compile
    than it saves. ``mixed``: clips are of several sizes.
    """
    compiled = torch.compile(eager)

    def forward(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG001  see UnmaskedAttnProcessor
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        *_: Any,
    ) -> tuple[Tensor, Tensor]:
        train, empty = torch.is_grad_enabled(), encoder_hidden_states.shape[1] == 1
        if train and empty:
            return eager(hidden_states, encoder_hidden_states, temb, None, image_rotary_emb)
        # Slices of a longer sequence have strides that depend on the caption: another graph for each.
        hidden_states, encoder_hidden_states = hidden_states.contiguous(), encoder_hidden_states.contiguous()
        if not empty:
            torch._dynamo.mark_dynamic(encoder_hidden_states, 1)
        if mixed:
            torch._dynamo.mark_dynamic(hidden_states, 1)
            for table in image_rotary_emb or ():
                torch._dynamo.mark_dynamic(table, 0)
        return compiled(hidden_states, encoder_hidden_states, temb, None, image_rotary_emb)

    return forward


def set_stride(model: HunyuanVideoTransformer3DModel, stride: float) -> None:
    """Give the model RoPE positions ``stride`` apart in space."""
    model.rope = StridedRope(tuple(model.config.rope_axes_dim), model.config.rope_theta, stride)


def block_matrices(modules: Mapping[str, nn.Module]) -> frozenset[str]:
    """Names, as checkpoints have them, of the blocks' weights apart from those of the modulation."""
    tensors = module_tensors({"transformer": modules["transformer"]})
    names = (name for name, value in tensors.items() if "transformer_blocks." in name and value.ndim == 2)
    return frozenset(name for name in names if ".norm" not in name)


def taught_parameters(modules: Mapping[str, nn.Module]) -> frozenset[str]:
    """Names of the parameters that the stage ``text`` trains."""
    text = ("text_encoder.", "text_encoder_2.", "transformer.context_embedder.")
    return frozenset(name for name in module_tensors(modules) if name.startswith(text))


def build_modules(config: TransformerConfig, seed: int) -> tuple[dict[str, nn.Module], Any]:
    """Transformer and text encoders by the pipeline's names, and the ``Text`` with the tokenizers."""
    text = build_text(config.text, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = build_transformer(config)
    return {"transformer": transformer, "text_encoder": text.encoder, "text_encoder_2": text.encoder_2}, text

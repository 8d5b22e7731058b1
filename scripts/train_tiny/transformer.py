"""Flow-matching training of the transformer, together with its two small text encoders.

Conventions are those of ``FlowMatchEulerDiscreteScheduler`` and ``HunyuanVideoPipeline``: x_s = (1 - s) data + s noise,
the model predicts noise - data and is told 1000 s; sigmas follow a logit-normal that is shifted as the scheduler shifts
its steps. A fifth of them is uniform before the shift, because sampling begins at sigma 1, which a logit-normal
practically never draws, and colours and motion are decided there.

Objects fill a tenth of a clip. Once the noise is low enough to show where they are, their cells weigh more, so that
outlines get their share of the gradient; at higher noise such a weight would favour clips with more in them.

Guidance is trained in, so that sampling needs one pass a step: late in the last stage the target moves on along the
difference that the caption makes, as in "Diffusion Models without Classifier-free Guidance" (arXiv 2502.12154). With
the weight w this amounts to a guidance scale of 1 / (1 - w).

Two sizes: ``small`` clips (128x128) teach words, shapes and motions at a tenth of the cost, ``full`` (256x256)
starts from their averaged weights. On small clips a token stands for four tokens of a full one, so its RoPE position
is the middle of those four: the frame has the same coordinates at both sizes.

Shapes: B clips, C channels, L caption tokens, T template tokens.
"""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scripts.train_tiny.captions import held_out_scenes
from scripts.train_tiny.checkpoint import generator_at, load_group, load_modules, module_tensors
from scripts.train_tiny.loop import Loop, LoopConfig
from scripts.train_tiny.pool import Batch, Geometry, LatentPool, PoolConfig
from scripts.train_tiny.sampling import accuracy, assemble_pipeline, sample_scenes
from scripts.train_tiny.text import TextConfig, build_text, embed
from scripts.train_tiny.vae import half_precision, load_vae

_UNIFORM_SHARE = 0.2
_NEAR_WEIGHT = 4.0
_NEAR_BELOW = 0.7  # sigma
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


@dataclass(frozen=True)
class StageConfig:
    """One stage: clip size, schedule shift, RoPE stride, trained-in guidance, and how to run it.

    ``guidance`` is the weight w of the module's docstring, from ``guidance_from`` of the schedule on.
    """

    name: str
    geometry: Geometry
    pool: PoolConfig
    shift: float
    stride: float = 1.0
    guidance: float = 0.0
    guidance_from: float = 0.4
    compile: bool = False
    attention: str = "auto"
    eval_minutes: float | None = None
    eval_clips: int = 16
    eval_steps: int = 12
    start_from: str | None = None


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


def prepare_for_training(model: HunyuanVideoTransformer3DModel, stage: StageConfig, *, mixed: bool = False) -> None:
    """Attention without masks, and blocks compiled on request. Parameters and their names stay as they are."""
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        block.attn.set_processor(UnmaskedAttnProcessor())
        if stage.compile:
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


def sample_sigmas(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels [count] in (0, 1), on the generator's device."""
    device = generator.device
    normal = torch.randn(count, generator=generator, device=device).sigmoid()
    uniform = torch.rand(count, generator=generator, device=device)
    pick = torch.rand(count, generator=generator, device=device) < _UNIFORM_SHARE
    sigma = torch.where(pick, uniform, normal)
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)


def flow_loss(
    modules: Mapping[str, nn.Module],
    batch: Batch,
    shift: float,
    generator: torch.Generator,
    *,
    guidance: float = 0.0,
    empty: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Mean squared error of the predicted velocity.

    Args:
        guidance: weight w of the difference between the predictions with and without caption.
        empty: token ids of the empty caption [1, ...]; needed with guidance.
    """
    data = batch.latents.float()
    noise = torch.randn(data.shape, generator=generator, device=data.device)
    sigma = sample_sigmas(len(data), shift, generator)
    noisy = torch.lerp(data, noise, sigma.view(-1, 1, 1, 1, 1))
    velocity = _velocity(modules, noisy, sigma, batch.llama, batch.clip)
    target = noise - data
    if guidance and batch.captioned and empty is not None:
        with torch.no_grad():
            llama, clip = (ids.expand(len(data), -1) for ids in empty)
            target = target + guidance * (velocity.detach() - _velocity(modules, noisy, sigma, llama, clip))
    near = batch.near & (sigma < _NEAR_BELOW).view(-1, 1, 1, 1, 1)
    weight = torch.where(near, _NEAR_WEIGHT, 1.0)
    return ((velocity - target).square() * weight).mean() / weight.mean()


def _velocity(modules: Mapping[str, nn.Module], noisy: Tensor, sigma: Tensor, llama: Tensor, clip: Tensor) -> Tensor:
    with half_precision(noisy.device):
        embeds, pooled = embed(modules["text_encoder"], modules["text_encoder_2"], llama, clip)
        velocity = modules["transformer"](
            hidden_states=noisy,
            timestep=1000.0 * sigma,
            encoder_hidden_states=embeds,
            encoder_attention_mask=torch.ones(embeds.shape[:2], dtype=torch.bool, device=noisy.device),
            pooled_projections=pooled,
            return_dict=False,
        )[0]
    return velocity.float()


def block_matrices(modules: Mapping[str, nn.Module]) -> frozenset[str]:
    """Names, as checkpoints have them, of the blocks' weights apart from those of the modulation."""
    tensors = module_tensors({"transformer": modules["transformer"]})
    names = (name for name, value in tensors.items() if "transformer_blocks." in name and value.ndim == 2)
    return frozenset(name for name in names if ".norm" not in name)


def build_modules(
    config: TransformerConfig, seed: int, corpus: Sequence[str] | None = None
) -> tuple[dict[str, nn.Module], Any]:
    """Transformer and text encoders by the pipeline's names, and the ``Text`` with the tokenizers."""
    text = build_text(config.text, seed, corpus)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = build_transformer(config)
    return {"transformer": transformer, "text_encoder": text.encoder, "text_encoder_2": text.encoder_2}, text


def train_transformer(
    config: TransformerConfig, stage: StageConfig, loop_config: LoopConfig, work: Path, device: torch.device
) -> bool:
    """Train one stage, resuming what ``work/<stage>`` holds, or starting from the averages of ``start_from``.

    Returns:
        True if the schedule came to its end.
    """
    vae = load_vae(work / "vae" / "model", device)
    modules, text = build_modules(config, loop_config.seed)
    for module in modules.values():
        module.to(device)
    averaged = {name: copy.deepcopy(module).requires_grad_(False) for name, module in modules.items()}
    for transformer in (modules["transformer"], averaged["transformer"]):
        set_stride(transformer, stage.stride)
    prepare_for_training(modules["transformer"], stage)

    extra = {
        "transformer": asdict(config),
        "shift": stage.shift,
        "stride": stage.stride,
        "geometry": asdict(stage.geometry),
    }
    loop = Loop(modules, averaged, loop_config, work / stage.name, extra, matrices=block_matrices(modules))
    if not loop.resume() and stage.start_from is not None:
        start = load_group(work / stage.start_from, "ema")
        if start is None:
            print(f"no weights in {work / stage.start_from}: {stage.name} starts from scratch", flush=True)
        else:
            load_modules(modules, start)
            load_modules(averaged, start)
    pool = LatentPool(stage.pool, stage.geometry, vae, text, loop_config.seed)
    pipe = assemble_pipeline(averaged, text, vae, stage.shift)

    def loss_at(step: int) -> Tensor:
        pool.advance(step)
        batch = pool.batch(step, loop_config.batch)
        guidance = stage.guidance if loop.progress() >= stage.guidance_from else 0.0
        generator = generator_at(loop_config.seed, step, "noise", device)
        return flow_loss(modules, batch, stage.shift, generator, guidance=guidance, empty=pool.empty)

    evaluated = loop.seconds

    def every(seconds: float) -> None:
        nonlocal evaluated
        if stage.eval_minutes is None or seconds - evaluated < 60.0 * stage.eval_minutes:
            return
        evaluated = seconds
        scenes = random.Random(0).sample(held_out_scenes(), stage.eval_clips)
        results = list(sample_scenes(pipe, scenes, stage.geometry, steps=stage.eval_steps, batch=stage.eval_clips))
        shares = ", ".join(f"{name} {share:.0%}" for name, share in accuracy(results).items())
        print(f"{stage.name} step {loop.step}: {shares}", flush=True)

    backends = BACKENDS[stage.attention]
    if backends is None:
        return loop.run(loss_at, every)
    with sdpa_kernel(backends, set_priority=True):
        return loop.run(loss_at, every)

"""A family that is unlike the others in every way that is known, from Wan's classes in diffusers.

It has two transformers of which each does a part of the steps, blocks that return the video's tokens alone,
self-attention without text, query and key norms over all heads at once, patch sizes in a tuple, processors that are
called by position, and guidance in two passes, the conditional one first. Tests add :data:`FACTS` to the list of
families.
"""

from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.config.families import FamilyFacts, Grid, SizeRule
from adaspa_cli.models.attachment import Attachment
from adaspa_cli.models.compiled import eager
from adaspa_cli.models.family import Classes, Encode, Family
from adaspa_cli.models.forward import Forward, Row, join
from adaspa_cli.models.qk import Rotation, prepare
from adaspa_cli.models.random_text import text_noise

TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "cross_attn_norm": True,
    "rope_max_seq_len": 32,
}
SCHEDULER = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "num_train_timesteps": 1000,
    "flow_shift": 3,
}
# Of the four steps at this shift two are above the boundary.
BOUNDARY = 0.8


class ToyProcessor:
    """Self-attention of one block."""

    def __init__(self, layer: int, forward: Forward) -> None:
        self._layer, self._forward = layer, forward

    @eager
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,  # noqa: ARG002
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        assert encoder_hidden_states is None
        assert rotary_emb is not None
        cosines, sines = (x[0, :, 0].float() for x in rotary_emb)
        rotation = Rotation(cosines[:, ::2], sines[:, 1::2])
        projected = (
            attn.norm_q(attn.to_q(hidden_states)),
            attn.norm_k(attn.to_k(hidden_states)),
            attn.to_v(hidden_states),
        )
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in projected)
        prepare(None, q, rotation, out=q)
        prepare(None, k, rotation, out=k)
        out = join(self._forward.attend_rows(self._layer, q, k, v))
        return attn.to_out[1](attn.to_out[0](out))


class ToyAttachment(Attachment):
    """Processors on the self-attention of all blocks."""

    def describe(self, config: Any, inputs: dict[str, Any]) -> list[Row]:
        batch, _, *size = inputs["hidden_states"].shape
        grid = self.family.facts.token_grid(config, *size)
        return [Row(self.branch, sample, TokenLayout(*grid, 0, "last", self.token_order)) for sample in range(batch)]


def size_rule(transformer: Any, vae: Any) -> SizeRule:
    return SizeRule(
        vae.get("scale_factor_spatial", 8) * transformer["patch_size"][1], vae.get("scale_factor_temporal", 4)
    )


def token_grid(transformer: Any, frames: int, height: int, width: int) -> Grid:
    of_time, of_height, of_width = transformer["patch_size"]
    return frames // of_time, height // of_height, width // of_width


FACTS = FamilyFacts(
    module="tests.models.toy_family",
    pipeline="WanPipeline",
    preset="tiny",
    layer_keys=("num_layers",),
    size_rule=size_rule,
    vae_scale=lambda vae: (vae.get("scale_factor_temporal", 4), vae.get("scale_factor_spatial", 8)),
    token_grid=token_grid,
    call_arguments=lambda sampling: {"guidance_scale": sampling.guidance_scale},
    guided=lambda sampling: sampling.guidance_scale > 1,
    transformers=("transformer", "transformer_2"),
)


class Toy(Family):
    facts = FACTS
    attention = "attn1"
    attachment = ToyAttachment
    absent = ("text_encoder", "tokenizer")

    def blocks(self, transformer: Any) -> list[Any]:
        return list(transformer.blocks)

    def processor(self, layer: int, forward: Forward) -> ToyProcessor:
        return ToyProcessor(layer, forward)

    def block_input(self, args: tuple[Any, ...], kwargs: Any) -> tuple[Tensor, ...]:
        return (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0],)

    def block_output(self, output: Any) -> tuple[Tensor, ...]:
        return (output,)

    def joined(self, tokens: tuple[Tensor, ...]) -> Tensor:
        return tokens[0]

    def classes(self) -> Classes:
        return Classes(WanPipeline, WanTransformer3DModel, AutoencoderKLWan)

    def encoder(self, pipe: Any) -> Encode:
        def encode_prompt(
            prompt: str, negative_prompt: str | None = None, do_classifier_free_guidance: bool = True, **_ignored: Any
        ) -> tuple[Tensor, Tensor | None]:
            where: Any = {"device": pipe._execution_device, "dtype": self.shape(pipe).dtype}
            shape = 1, 8, self.transformers(pipe)[0].config.text_dim
            negative = text_noise(negative_prompt or "", *shape, **where) if do_classifier_free_guidance else None
            return text_noise(prompt, *shape, **where), negative

        return encode_prompt


FAMILY = Toy()


def toy() -> WanPipeline:
    """Two transformers of two blocks; 8x8 spatial and 4x temporal VAE, which is left out."""
    torch.manual_seed(0)
    transformers = [WanTransformer3DModel(**TRANSFORMER).eval() for _ in range(2)]
    with torch.no_grad():
        for name, parameter in (pair for one in transformers for pair in one.named_parameters()):
            if "norm_q.weight" in name:
                parameter.mul_(4)  # attention that is not uniform
    pipe = WanPipeline(None, None, None, UniPCMultistepScheduler(**SCHEDULER), *transformers, boundary_ratio=BOUNDARY)
    pipe.encode_prompt = FAMILY.encoder(pipe)
    return pipe

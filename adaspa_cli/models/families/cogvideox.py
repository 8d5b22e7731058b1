"""CogVideoX 1.0 and 1.5: text first, always padded to the same length and attended to, then video.

Classifier-free guidance is one forward pass with a batch of [uncond, cond]: each half has masks of its own.

Shapes: B batch, T text tokens, N video tokens, H heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.layout import OrderName
from adaspa_cli.config.families import facts_of
from adaspa_cli.hooks.override import Override
from adaspa_cli.models.attachment import Attachment
from adaspa_cli.models.compiled import eager
from adaspa_cli.models.family import Classes, Encode, Family
from adaspa_cli.models.forward import Attend, Forward, Row, join
from adaspa_cli.models.linears import Gelu, Linears
from adaspa_cli.models.pinned_noise import PinnedNoise
from adaspa_cli.models.qk import Rotation, project_joint
from adaspa_cli.models.random_text import text_noise
from adaspa_cli.models.reordering import Ends, Rearrangement
from adaspa_cli.models.text_reader import TextReader, default_of


class CogVideoXProcessor:
    """Joint attention of one block."""

    def __init__(self, layer: int, forward: Forward) -> None:
        self._layer, self._forward = layer, forward

    @eager  # nothing in here is the compiler's business: models/compiled.py says why
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG002  CogVideoX has none
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """hidden_states [B, N, C], encoder_hidden_states [B, T, C] to attention outputs of the same shapes."""
        text_tokens = encoder_hidden_states.shape[1]
        joint = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        rotation = None
        if image_rotary_emb is not None:
            rotation = Rotation.of(image_rotary_emb, joint.device, first=text_tokens)
        out = join(self._forward.attend_rows(self._layer, *project_joint(attn, joint, rotation)))
        out = attn.to_out[1](attn.to_out[0](out))
        return out[:, text_tokens:], out[:, :text_tokens]


class CogVideoXAttachment(Attachment):
    """Processors on all blocks."""

    def __init__(self, family: Family, pipe: Any, attend: Attend, token_order: OrderName) -> None:
        super().__init__(family, pipe, attend, token_order)
        self._pipe = pipe
        self._branches: tuple[str, ...] | None = None  # of the run in progress
        self._called = self._own_run = False  # whether the pipeline was called, and the run is that call's
        self._timesteps = torch.empty(0, dtype=torch.float32, device="cpu")
        self._numbers: list[float] = []
        self._overrides += [
            Override(pipe, "check_inputs", self._note_call),
            Override(pipe.scheduler, "set_timesteps", self._note_start),
            Override(pipe.scheduler, "step", self._step_without_waiting),
        ]

    def _note_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def check_inputs(*args: Any, **kwargs: Any) -> Any:
            self._called = True  # it is what a call begins with
            return original(*args, **kwargs)

        return check_inputs

    def _note_start(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            self._branches = None
            self._own_run, self._called = self._called, False
            result = original(*args, **kwargs)
            self._timesteps = self._pipe.scheduler.timesteps
            self._numbers = self._timesteps.tolist()
            return result

        return set_timesteps

    def _step_without_waiting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Give the scheduler its timesteps as numbers, and draw its noise into pinned memory.

        It looks at the values of the timesteps. As elements of a tensor on a GPU they would come only after all the
        work of the transformer, which is in the same queue, and the noise that the scheduler draws on the CPU after
        that.
        """

        def number(value: Any) -> Any:
            whole = self._timesteps
            if not isinstance(value, Tensor) or value.dim() or value.dtype != whole.dtype:
                return value
            if value.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
                return value
            return self._numbers[value.storage_offset() - whole.storage_offset()]

        def step(*args: Any, **kwargs: Any) -> Any:
            with PinnedNoise() if self._timesteps.device.type == "cuda" else nullcontext():
                return original(*map(number, args), **{name: number(value) for name, value in kwargs.items()})

        return step

    def describe(self, config: Any, inputs: dict[str, Any]) -> list[Row]:
        latents = inputs["hidden_states"]
        batch, frames, _, *size = latents.shape
        grid = self.family.facts.token_grid(config, frames, *size)
        layout = TokenLayout(*grid, inputs["encoder_hidden_states"].shape[1], "first", self.token_order)
        if self._branches is None:
            self._branches = ("uncond", "cond") if self._guided(latents) else ("cond",)
        samples = batch // len(self._branches)
        return [Row(branch, sample, layout) for branch in self._branches for sample in range(samples)]

    def rearrange_inputs(self, inputs: dict[str, Any], rearrangement: Rearrangement) -> None:
        if inputs.get("image_rotary_emb") is not None:
            inputs["image_rotary_emb"] = rearrangement.rotary(inputs["image_rotary_emb"])

    def _guided(self, latents: Tensor) -> bool:
        """Whether a batch holds both branches of guidance: its halves are then the same latents.

        Two videos may begin with the same noise as well. The pipeline knows; another one that shares its parts is taken
        to guide. Asked at the start, because dynamic guidance changes the scale; one synchronisation a run.
        """
        if len(latents) % 2 or not torch.equal(*latents.chunk(2)):
            return False
        return not self._own_run or self._pipe.guidance_scale > 1


class CogVideoX(Family):
    """CogVideoX 1.0 and 1.5, text to video."""

    facts = facts_of("CogVideoXPipeline", "CogVideoX")
    attention = "attn1"
    attachment = CogVideoXAttachment
    linears = Linears(
        sharing=(("attn1.to_q", "attn1.to_k", "attn1.to_v"),),
        single=("attn1.to_out.0",),
        gelus=(Gelu("ff.net.0", before="ff.net.0.proj", after="ff.net.2"),),
    )
    absent = ("text_encoder", "tokenizer")

    def blocks(self, transformer: Any) -> list[Any]:
        return list(transformer.transformer_blocks)

    def processor(self, layer: int, forward: Forward) -> CogVideoXProcessor:
        return CogVideoXProcessor(layer, forward)

    def ends(self, transformer: Any) -> Ends:
        # Positions that are learned, or sines, are added to the tokens where they are embedded: before they move.
        return Ends(transformer.patch_embed, transformer.proj_out)

    def classes(self) -> Classes:
        from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel

        return Classes(CogVideoXPipeline, CogVideoXTransformer3DModel, AutoencoderKLCogVideoX)

    def encoder(self, pipe: Any) -> Encode:
        def encode_prompt(
            prompt: str,
            negative_prompt: str | None = None,
            do_classifier_free_guidance: bool = True,
            *,
            max_sequence_length: int = 226,
            **_ignored: Any,
        ) -> tuple[Tensor, Tensor | None]:
            """Embeddings [1, T, C] of the prompt, and of the negative prompt where there is guidance."""
            shape = (1, max_sequence_length, self.transformers(pipe)[0].config.text_embed_dim)
            where: Any = {"device": pipe._execution_device, "dtype": self.shape(pipe).dtype}
            negative = text_noise(negative_prompt or "", *shape, **where) if do_classifier_free_guidance else None
            return text_noise(prompt, *shape, **where), negative

        return encode_prompt

    def readers(self, pipe: Any) -> tuple[TextReader, ...]:
        limit = default_of(pipe, "max_sequence_length")
        return (TextReader("tokens of a prompt", limit, lambda text: len(pipe.tokenizer(text).input_ids)),)


FAMILY = CogVideoX()

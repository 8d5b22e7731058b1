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
from adaspa_cli.attention.layout import OrderName, ceil_div
from adaspa_cli.config.families import facts_of
from adaspa_cli.hooks.override import Override
from adaspa_cli.models.attachment import Attachment, Attend, Forward, Row, join
from adaspa_cli.models.compiled import eager
from adaspa_cli.models.family import Family
from adaspa_cli.models.pinned_noise import PinnedNoise
from adaspa_cli.models.qk import Rotation, prepare
from adaspa_cli.models.reordering import Reordering


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
        projected = (attn.to_q(joint), attn.to_k(joint), attn.to_v(joint))
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in projected)
        rotation = None
        if image_rotary_emb is not None:
            rotation = Rotation.of(image_rotary_emb, joint.device, first=text_tokens)
        prepare(attn.norm_q, q, rotation, out=q)
        prepare(attn.norm_k, k, rotation, out=k)
        out = join(self._forward.attend_rows(self._layer, q, k, v))
        out = attn.to_out[1](attn.to_out[0](out))
        return out[:, text_tokens:], out[:, :text_tokens]


class CogVideoXAttachment(Attachment):
    """Processors on all blocks."""

    def __init__(self, pipe: Any, attend: Attend, token_order: OrderName = "raster") -> None:
        self._config = pipe.transformer.config
        self._token_order = token_order
        self._pipe = pipe
        self._guided = False
        forward = Forward(attend)
        super().__init__(
            pipe.transformer,
            pipe.transformer.transformer_blocks,
            "attn1",
            forward,
            lambda layer: CogVideoXProcessor(layer, forward),
            self._describe,
        )
        self._reordering: Reordering | None = None
        if token_order == "hilbert":
            # Positions that are learned, or sines, are added to the tokens where they are embedded: before they move.
            ends = pipe.transformer.patch_embed, pipe.transformer.proj_out
            self._reordering = Reordering(*ends, lambda: self.rows[0].layout)
        self._timesteps = torch.empty(0)
        self._numbers: list[float] = []
        self._overrides = [
            Override(pipe.scheduler, "set_timesteps", self._note_start),
            Override(pipe.scheduler, "step", self._step_without_waiting),
        ]

    def _note_start(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            # Dynamic guidance changes the scale from step to step; what it is at the start decides about the batch.
            self._guided = self._pipe.guidance_scale > 1
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

    def _describe(self, kwargs: dict[str, Any]) -> None:
        batch, frames, _, height, width = kwargs["hidden_states"].shape
        patch = self._config.patch_size
        layout = TokenLayout(
            frames=ceil_div(frames, self._config.patch_size_t or 1),
            height=height // patch,
            width=width // patch,
            text_tokens=kwargs["encoder_hidden_states"].shape[1],
            text_position="first",
            order=self._token_order,
        )
        branches = ("uncond", "cond") if self._guided else ("cond",)
        samples = batch // len(branches)
        self._forward.rows = [Row(branch, sample, layout) for branch in branches for sample in range(samples)]
        if self._reordering is not None and kwargs.get("image_rotary_emb") is not None:
            kwargs["image_rotary_emb"] = self._reordering.rotary(kwargs["image_rotary_emb"])

    def detach(self) -> None:
        super().detach()
        if self._reordering is not None:
            self._reordering.remove()
        for override in self._overrides:
            override.restore()


FAMILY = Family(facts_of("CogVideoXPipeline", "CogVideoXPipeline"), CogVideoXAttachment)

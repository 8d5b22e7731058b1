"""HunyuanVideo and FastHunyuan: video first, then text padded to a fixed length.

The transformer masks padded text in every attention. Here it is dropped before attention and its output, which
nothing reads, is zero: the video is the same, and no mask slows the dense kernels down.

Shapes: B batch, N video tokens, T text tokens with padding, H heads, D head dimension.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.models.attachment import Attachment, Attend, Forward, Override, Row, join, pad_tokens
from adaspa_cli.models.compiled import eager

Rotary = tuple[Tensor, Tensor]
Norm = Callable[[Tensor], Tensor]

_CPU_TOKENS = 1024  # of a piece that is normalised and rotated at once


class HunyuanVideoProcessor:
    """Attention of one dual-stream or single-stream block."""

    def __init__(self, layer: int, forward: Forward) -> None:
        self._layer, self._forward = layer, forward

    @eager  # nothing in here is the compiler's business: models/compiled.py says why
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG002  the rows' layouts say which text is real
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Tensor, Tensor]:
        """hidden_states [B, N, C], encoder_hidden_states [B, T, C] to attention outputs of the same shapes."""
        tokens, text_tokens = hidden_states.shape[1], encoder_hidden_states.shape[1]
        turns = None if image_rotary_emb is None else _turns(image_rotary_emb, hidden_states.device)
        if attn.add_q_proj is None:
            q, k, v = self._single_stream(attn, hidden_states, encoder_hidden_states, turns)
        else:
            q, k, v = self._dual_stream(attn, hidden_states, encoder_hidden_states, turns)
        rows = self._forward.attend_rows(self._layer, q, k, v)
        video = join([row[:, :tokens] for row in rows])
        text = join([pad_tokens(row[:, tokens:], text_tokens) for row in rows])
        if getattr(attn, "to_out", None) is not None:
            video = attn.to_out[1](attn.to_out[0](video))
        if getattr(attn, "to_add_out", None) is not None:
            text = attn.to_add_out(text)
        return video, text

    @staticmethod
    def _single_stream(attn: Any, video: Tensor, text: Tensor, turns: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Project video and text together: q, k, v [B, N + T, H, D]."""
        joint = torch.cat([video, text], dim=1)
        projected = (attn.to_q(joint), attn.to_k(joint), attn.to_v(joint))
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in projected)
        q, k = (torch.cat(_prepare(*pair, turns), dim=1) for pair in ((attn.norm_q, q), (attn.norm_k, k)))
        return q, k, v

    @staticmethod
    def _dual_stream(attn: Any, video: Tensor, text: Tensor, turns: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Project video and text by weights of their own: q, k, v [B, N + T, H, D]."""
        heads = (attn.heads, -1)
        q, k, v = (x.unflatten(2, heads) for x in (attn.to_q(video), attn.to_k(video), attn.to_v(video)))
        added = (attn.add_q_proj(text), attn.add_k_proj(text), attn.add_v_proj(text))
        text_q, text_k, text_v = (x.unflatten(2, heads) for x in added)
        return (
            torch.cat([*_prepare(attn.norm_q, q, turns), *_prepare(attn.norm_added_q, text_q, None)], dim=1),
            torch.cat([*_prepare(attn.norm_k, k, turns), *_prepare(attn.norm_added_k, text_k, None)], dim=1),
            torch.cat([v, text_v], dim=1),
        )


def _prepare(norm: Norm | None, x: Tensor, turns: Tensor | None) -> list[Tensor]:
    """Normalise x [B, L, H, D] and rotate its first tokens by ``turns``: the pieces of the result along the tokens.

    On a CPU the pieces are small: their many float32 copies stay in the cache, and fresh memory costs more than the
    arithmetic. A GPU takes one piece.
    """
    step = _CPU_TOKENS if x.device.type == "cpu" else x.shape[1]
    pieces = []
    for start in range(0, x.shape[1], step):
        piece = x[:, start : start + step]
        normal = piece if norm is None else norm(piece)
        pieces.append(normal if turns is None else _rotate(normal, turns[start : start + step]))
    return pieces


def _turns(rotary: Rotary, device: torch.device) -> Tensor:
    """The rotary embedding's cosines and sines [N, D], alike for both channels of a pair, as complex [N, 1, D / 2]."""
    cosines, sines = (x.to(device)[:, None, ::2] for x in rotary)
    return torch.complex(cosines, sines)


def _rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Rotary position embedding of the first tokens of x [B, L, H, D]; the text after them keeps its values.

    A pair of neighbouring channels is a complex number, and its rotation one product: a fifth of the passes of
    diffusers' ``apply_rotary_emb``, which it equals but for float32 rounding, and no concatenation.
    """
    turned = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    pairs = torch.view_as_complex(turned.view(*x.shape[:-1], x.shape[-1] // 2, 2))
    pairs[:, : len(turns)] *= turns
    return turned.to(x.dtype)


class HunyuanVideoAttachment(Attachment):
    """Processors on the dual and single blocks; the token refiner's attention stays as it is."""

    def __init__(self, pipe: Any, attend: Attend) -> None:
        self._transformer = pipe.transformer
        self._branch = "cond"
        forward = Forward(attend)
        super().__init__(
            self._transformer,
            [*self._transformer.transformer_blocks, *self._transformer.single_transformer_blocks],
            "attn",
            forward,
            lambda layer: HunyuanVideoProcessor(layer, forward),
            self._describe,
        )
        # True CFG runs the branches one after the other, each inside cache_context("cond" | "uncond").
        self._context = Override(self._transformer, "cache_context", self._note_branch)

    def _note_branch(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @contextlib.contextmanager
        def cache_context(name: str, **kwargs: Any) -> Iterator[None]:
            self._branch = name
            try:
                with original(name, **kwargs):
                    yield
            finally:
                self._branch = "cond"

        return cache_context

    def _describe(self, kwargs: dict[str, Any]) -> None:
        """Read the rows' layouts off the inputs; one synchronisation a forward pass, for the text lengths."""
        config = self._transformer.config
        _, _, frames, height, width = kwargs["hidden_states"].shape
        grid = (frames // config.patch_size_t, height // config.patch_size, width // config.patch_size)
        lengths = kwargs["encoder_attention_mask"].sum(dim=1, dtype=torch.int).tolist()
        self._forward.rows = [
            Row(self._branch, sample, TokenLayout(*grid, text_tokens=length, text_position="last"))
            for sample, length in enumerate(lengths)
        ]

    def detach(self) -> None:
        super().detach()
        self._context.restore()

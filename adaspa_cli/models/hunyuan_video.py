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
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.models.attachment import Attachment, Attend, Forward, Override, Row, join, pad_tokens

Rotary = tuple[Tensor, Tensor]


class HunyuanVideoProcessor:
    """Attention of one dual-stream or single-stream block."""

    def __init__(self, layer: int, forward: Forward) -> None:
        self._layer, self._forward = layer, forward

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
        if attn.add_q_proj is None:
            q, k, v = self._single_stream(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        else:
            q, k, v = self._dual_stream(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        rows = self._forward.attend_rows(self._layer, q, k, v)
        video = join([row[:, :tokens] for row in rows])
        text = join([pad_tokens(row[:, tokens:], text_tokens) for row in rows])
        if getattr(attn, "to_out", None) is not None:
            video = attn.to_out[1](attn.to_out[0](video))
        if getattr(attn, "to_add_out", None) is not None:
            text = attn.to_add_out(text)
        return video, text

    @staticmethod
    def _single_stream(attn: Any, video: Tensor, text: Tensor, rotary: Rotary | None) -> list[Tensor]:
        """Project video and text together: q, k, v [B, N + T, H, D]."""
        joint = torch.cat([video, text], dim=1)
        projected = (attn.to_q(joint), attn.to_k(joint), attn.to_v(joint))
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in projected)
        q, k = _normalise(attn.norm_q, q), _normalise(attn.norm_k, k)
        tokens = video.shape[1]
        return [
            torch.cat([_rotate(q[:, :tokens], rotary), q[:, tokens:]], dim=1),
            torch.cat([_rotate(k[:, :tokens], rotary), k[:, tokens:]], dim=1),
            v,
        ]

    @staticmethod
    def _dual_stream(attn: Any, video: Tensor, text: Tensor, rotary: Rotary | None) -> list[Tensor]:
        """Project video and text by weights of their own: q, k, v [B, N + T, H, D]."""
        heads = (attn.heads, -1)
        q, k, v = (x.unflatten(2, heads) for x in (attn.to_q(video), attn.to_k(video), attn.to_v(video)))
        q, k = _rotate(_normalise(attn.norm_q, q), rotary), _rotate(_normalise(attn.norm_k, k), rotary)
        added = (attn.add_q_proj(text), attn.add_k_proj(text), attn.add_v_proj(text))
        text_q, text_k, text_v = (x.unflatten(2, heads) for x in added)
        text_q, text_k = _normalise(attn.norm_added_q, text_q), _normalise(attn.norm_added_k, text_k)
        return [torch.cat(pair, dim=1) for pair in ((q, text_q), (k, text_k), (v, text_v))]


def _normalise(norm: Callable[[Tensor], Tensor] | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def _rotate(x: Tensor, rotary: Rotary | None) -> Tensor:
    """Rotary position embedding of x [B, N, H, D]."""
    return x if rotary is None else apply_rotary_emb(x, rotary, sequence_dim=1)


class HunyuanVideoAttachment(Attachment):
    """Processors on the dual and single blocks; the token refiner's attention stays as it is."""

    def __init__(self, pipe: Any, attend: Attend) -> None:
        self._transformer = pipe.transformer
        self._forward = Forward(attend)
        self._branch = "cond"
        blocks = [*self._transformer.transformer_blocks, *self._transformer.single_transformer_blocks]
        super().__init__(
            self._transformer,
            [block.attn for block in blocks],
            lambda layer: HunyuanVideoProcessor(layer, self._forward),
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

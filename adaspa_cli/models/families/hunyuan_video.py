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
from adaspa_cli.attention.layout import OrderName
from adaspa_cli.config.families import facts_of
from adaspa_cli.hooks.override import Override
from adaspa_cli.models.attachment import Attachment, Attend, Forward, Row, join, pad_tokens
from adaspa_cli.models.compiled import eager
from adaspa_cli.models.family import Family
from adaspa_cli.models.qk import Norm, Rotation, prepare
from adaspa_cli.models.reordering import Reordering


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
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """hidden_states [B, N, C], encoder_hidden_states [B, T, C] to attention outputs of the same shapes."""
        tokens, text_tokens = hidden_states.shape[1], encoder_hidden_states.shape[1]
        rotation = None if image_rotary_emb is None else Rotation.of(image_rotary_emb, hidden_states.device)
        project = self._single_stream if attn.add_q_proj is None else self._dual_stream
        q, k, v = project(attn, hidden_states, encoder_hidden_states, rotation)
        rows = self._forward.attend_rows(self._layer, q, k, v)
        video = join([row[:, :tokens] for row in rows])
        text = join([pad_tokens(row[:, tokens:], text_tokens) for row in rows])
        if getattr(attn, "to_out", None) is not None:
            video = attn.to_out[1](attn.to_out[0](video))
        if getattr(attn, "to_add_out", None) is not None:
            text = attn.to_add_out(text)
        return video, text

    @staticmethod
    def _single_stream(
        attn: Any, video: Tensor, text: Tensor, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project video and text together: q, k, v [B, N + T, H, D]."""
        joint = torch.cat([video, text], dim=1)
        projected = (attn.to_q(joint), attn.to_k(joint), attn.to_v(joint))
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in projected)
        prepare(attn.norm_q, q, rotation, out=q)
        prepare(attn.norm_k, k, rotation, out=k)
        return q, k, v

    @staticmethod
    def _dual_stream(
        attn: Any, video: Tensor, text: Tensor, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project video and text by weights of their own: q, k, v [B, N + T, H, D]."""

        def join_prepared(of_video: Tensor, of_text: Tensor, norm: Norm | None, text_norm: Norm | None) -> Tensor:
            tokens, heads = video.shape[1], (attn.heads, of_video.shape[2] // attn.heads)
            joint = of_video.new_empty(len(video), tokens + text.shape[1], *heads)
            prepare(norm, of_video.view(*of_video.shape[:2], *heads), rotation, out=joint[:, :tokens])
            prepare(text_norm, of_text.view(*of_text.shape[:2], *heads), None, out=joint[:, tokens:])
            return joint

        q = join_prepared(attn.to_q(video), attn.add_q_proj(text), attn.norm_q, attn.norm_added_q)
        k = join_prepared(attn.to_k(video), attn.add_k_proj(text), attn.norm_k, attn.norm_added_k)
        v = torch.cat([attn.to_v(video), attn.add_v_proj(text)], dim=1)
        return q, k, v.view(q.shape)


class HunyuanVideoAttachment(Attachment):
    """Processors on the dual and single blocks; the token refiner's attention stays as it is."""

    def __init__(self, pipe: Any, attend: Attend, token_order: OrderName = "raster") -> None:
        self._transformer = pipe.transformer
        self._token_order = token_order
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
        # The embedding gives tokens in the memory layout of channels, which the dual blocks would keep through all of
        # their elementwise work.
        self._embedded = self._transformer.x_embedder.register_forward_hook(lambda _module, _args, x: x.contiguous())
        self._reordering: Reordering | None = None
        if token_order == "hilbert":
            ends = self._transformer.x_embedder, self._transformer.proj_out
            self._reordering = Reordering(*ends, lambda: self.rows[0].layout, self._transformer.rope)
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
            Row(self._branch, sample, TokenLayout(*grid, length, "last", self._token_order))
            for sample, length in enumerate(lengths)
        ]

    def detach(self) -> None:
        super().detach()
        if self._reordering is not None:
            self._reordering.remove()
        self._embedded.remove()
        self._context.restore()


FAMILY = Family(facts_of("HunyuanVideoPipeline", "HunyuanVideoPipeline"), HunyuanVideoAttachment)

"""HunyuanVideo and FastHunyuan: video first, then text padded to a fixed length.

The transformer masks padded text in every attention. Here it is dropped before attention and its output, which
nothing reads, is zero: the video is the same, and no mask slows the dense kernels down.

Shapes: B batch, N video tokens, T text tokens with padding, H heads, D head dimension.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.layout import OrderName
from adaspa_cli.config.families import facts_of
from adaspa_cli.models.attachment import Attachment
from adaspa_cli.models.compiled import eager
from adaspa_cli.models.family import Classes, Encode, Family
from adaspa_cli.models.forward import Attend, Forward, Row, join, pad_tokens
from adaspa_cli.models.linears import Gelu, Linears
from adaspa_cli.models.qk import Norm, Rotation, prepare, project_joint
from adaspa_cli.models.random_text import text_noise, text_tokens
from adaspa_cli.models.reordering import Ends
from adaspa_cli.models.text_reader import TextReader, default_of
from adaspa_cli.models.tokenizer import tokenizer_as_written


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
        if attn.add_q_proj is None:
            joint = torch.cat([hidden_states, encoder_hidden_states], dim=1)
            q, k, v = project_joint(attn, joint, rotation)
        else:
            q, k, v = self._dual_stream(attn, hidden_states, encoder_hidden_states, rotation)
        rows = self._forward.attend_rows(self._layer, q, k, v)
        video = join([row[:, :tokens] for row in rows])
        text = join([pad_tokens(row[:, tokens:], text_tokens) for row in rows])
        if getattr(attn, "to_out", None) is not None:
            video = attn.to_out[1](attn.to_out[0](video))
        if getattr(attn, "to_add_out", None) is not None:
            text = attn.to_add_out(text)
        return video, text

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

    def __init__(self, family: Family, pipe: Any, attend: Attend, token_order: OrderName) -> None:
        super().__init__(family, pipe, attend, token_order)
        # The embedding gives tokens in the memory layout of channels, which the dual blocks would keep through all of
        # their elementwise work.
        self._hooks += [
            transformer.x_embedder.register_forward_hook(lambda _module, _args, x: x.contiguous())
            for transformer in self.transformers
        ]

    def describe(self, config: Any, inputs: dict[str, Any]) -> list[Row]:
        """One synchronisation a forward pass, for the text lengths. The text of a single row serves all rows."""
        batch, _, *size = inputs["hidden_states"].shape
        grid = self.family.facts.token_grid(config, *size)
        lengths = inputs["encoder_attention_mask"].sum(dim=1, dtype=torch.int).tolist()
        if len(lengths) == 1:
            lengths = lengths * batch
        lead = self.lead_frames(config) if self.token_order == "hilbert" else 0
        return [
            Row(self.branch, sample, TokenLayout(*grid, length, "last", self.token_order, lead))
            for sample, length in enumerate(lengths)
        ]

    def lead_frames(self, config: Any) -> int:  # noqa: ARG002
        """Latent frames that the blocks treat apart, and expect in front of the others."""
        return 0


class HunyuanVideo(Family):
    """HunyuanVideo and FastHunyuan, text to video."""

    facts = facts_of("HunyuanVideoPipeline", "HunyuanVideo")
    attention = "attn"
    attachment = HunyuanVideoAttachment
    linears = Linears(
        sharing=(
            ("attn.to_q", "attn.to_k", "attn.to_v"),
            ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        ),
        single=("attn.to_out.0", "attn.to_add_out"),
        gelus=(
            Gelu("ff.net.0", before="ff.net.0.proj", after="ff.net.2"),
            Gelu("ff_context.net.0", before="ff_context.net.0.proj", after="ff_context.net.2"),
            Gelu("act_mlp", before="proj_mlp", after="proj_out"),
        ),
    )
    absent: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    ending: ClassVar[int] = 0  # tokens at the end of a prompt that is too long that are not read either

    def blocks(self, transformer: Any) -> list[Any]:
        return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]

    def processor(self, layer: int, forward: Forward) -> HunyuanVideoProcessor:
        return HunyuanVideoProcessor(layer, forward)

    def ends(self, transformer: Any) -> Ends:
        return Ends(transformer.x_embedder, transformer.proj_out, transformer.rope)

    def parts(self, location: str, *, local_files_only: bool) -> dict[str, Any]:
        # Without its spaces the prompt template would no longer have the length that the pipeline cuts off.
        return {"tokenizer": tokenizer_as_written(location, local_files_only=local_files_only)}

    def classes(self) -> Classes:
        from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel

        return Classes(HunyuanVideoPipeline, HunyuanVideoTransformer3DModel, AutoencoderKLHunyuanVideo)

    def encoder(self, pipe: Any) -> Encode:
        def encode_prompt(
            prompt: str, *, max_sequence_length: int = 256, **_ignored: Any
        ) -> tuple[Tensor, Tensor, Tensor]:
            """Embeddings [1, T, C], pooled embeddings [1, P], mask [1, T]."""
            config = self.transformers(pipe)[0].config
            where: Any = {"device": pipe._execution_device, "dtype": self.shape(pipe).dtype}
            embeddings = text_noise(prompt, 1, max_sequence_length, config.text_embed_dim, **where)
            pooled = text_noise(prompt, 1, config.pooled_projection_dim, **where)
            mask = torch.zeros(1, max_sequence_length, dtype=torch.long, device=embeddings.device)
            mask[:, : text_tokens(prompt, max_sequence_length)] = 1
            return embeddings, pooled, mask

        return encode_prompt

    def readers(self, pipe: Any) -> tuple[TextReader, ...]:
        """CLIP, which reads 77 tokens, isn't one of them: it gives a single vector for the whole video, which the first
        words decide, so that a prompt of usual length would be named for nothing."""
        template = default_of(pipe, "prompt_template")
        before, crop = template["template"].partition("{}")[0], template["crop_start"]
        limit = default_of(pipe, "max_sequence_length") - self.ending
        return (
            TextReader("tokens of a prompt", limit, lambda text: len(pipe.tokenizer(before + text).input_ids) - crop),
        )


FAMILY = HunyuanVideo()

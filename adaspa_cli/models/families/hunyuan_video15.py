"""HunyuanVideo 1.5: video first, then text, of which what is real stands first.

The transformer of diffusers builds a bool mask of N x N tokens in each block, 12.9 GB at 720 x 1280 x 121. Here padded
text is dropped before attention, as for HunyuanVideo, and no mask is built.

Guidance is a part of the pipeline, its *guider*, which names its passes ``pred_cond`` and ``pred_uncond``.

Shapes: T text tokens with padding, I of them of the picture (zeros without one), C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.layout import OrderName
from adaspa_cli.config.families import facts_of
from adaspa_cli.config.schema import SamplingConfig
from adaspa_cli.errors import RunError
from adaspa_cli.models.families.hunyuan_video import HunyuanVideo, HunyuanVideoAttachment
from adaspa_cli.models.family import Classes, Encode, Family
from adaspa_cli.models.forward import Attend, Row
from adaspa_cli.models.linears import Linears
from adaspa_cli.models.random_text import text_noise, text_tokens
from adaspa_cli.models.text_reader import TextReader

GUIDER = "ClassifierFreeGuidance"


class HunyuanVideo15Attachment(HunyuanVideoAttachment):
    """Processors on all blocks; the token refiner's attention stays as it is."""

    def __init__(self, family: Family, pipe: Any, attend: Attend, token_order: OrderName) -> None:
        self._pipe = pipe
        self._check_guider()
        super().__init__(family, pipe, attend, token_order)

    def _check_guider(self) -> None:
        name = type(self._pipe.guider).__name__
        if name != GUIDER:
            raise RunError(
                f"the guider {name} makes passes that adaspa cannot tell apart", hint=f"set pipe.guider to a {GUIDER}"
            )

    def describe(self, config: Any, inputs: dict[str, Any]) -> list[Row]:
        """One synchronisation a forward pass, for the text lengths."""
        self._check_guider()
        grid = self.family.facts.token_grid(config, *inputs["hidden_states"].shape[2:])
        # Masks come in the model's dtype, and bfloat16 cannot count beyond 256.
        real = sum(inputs[key].bool().sum(dim=1) for key in ("encoder_attention_mask", "encoder_attention_mask_2"))
        picture = inputs["image_embeds"]
        real = real + picture.bool().any() * picture.shape[1]
        return [
            Row(self.branch, sample, TokenLayout(*grid, int(length), "last", self.token_order))
            for sample, length in enumerate(real.tolist())
        ]


class HunyuanVideo15(HunyuanVideo):
    """HunyuanVideo 1.5, text to video."""

    facts = facts_of("HunyuanVideo15Pipeline", "HunyuanVideo 1.5")
    attachment = HunyuanVideo15Attachment
    linears = Linears(
        sharing=HunyuanVideo.linears.sharing,
        single=HunyuanVideo.linears.single,
        gelus=tuple(gelu for gelu in HunyuanVideo.linears.gelus if gelu.path != "act_mlp"),
    )
    branch_names: ClassVar[dict[str, str]] = {"pred_cond": "cond", "pred_uncond": "uncond"}

    def blocks(self, transformer: Any) -> list[Any]:
        return list(transformer.transformer_blocks)

    def parts(self, location: str, *, local_files_only: bool) -> dict[str, Any]:  # noqa: ARG002
        return {}

    @contextmanager
    def set_up(self, pipe: Any, sampling: SamplingConfig) -> Iterator[None]:
        """Guidance is no argument of the call, but the guider's."""
        before = pipe.guider
        pipe.guider = before.new(guidance_scale=sampling.guidance_scale)
        try:
            yield
        finally:
            pipe.guider = before

    def classes(self) -> Classes:
        from diffusers import (
            AutoencoderKLHunyuanVideo15,
            HunyuanVideo15Pipeline,
            HunyuanVideo15Transformer3DModel,
        )

        return Classes(HunyuanVideo15Pipeline, HunyuanVideo15Transformer3DModel, AutoencoderKLHunyuanVideo15)

    def made_parts(self) -> dict[str, Any]:
        from diffusers import ClassifierFreeGuidance

        return {"guider": ClassifierFreeGuidance()}

    def encoder(self, pipe: Any) -> Encode:
        def encode_prompt(prompt: str | None, **_ignored: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """Embeddings [1, T, C] and mask [1, T] of the prompt, and of the texts that are to be read in the video."""
            config = self.transformers(pipe)[0].config
            where: Any = {"device": pipe._execution_device, "dtype": self.shape(pipe).dtype}
            longest, glyphs = pipe.tokenizer_max_length, pipe.tokenizer_2_max_length
            text = text_noise(prompt or "", 1, longest, config.text_embed_dim, **where)
            mask = torch.zeros(1, longest, **where)
            mask[:, : text_tokens(prompt or "", longest)] = 1
            return text, mask, torch.zeros(1, glyphs, config.text_embed_2_dim, **where), torch.zeros(1, glyphs, **where)

        return encode_prompt

    def readers(self, pipe: Any) -> tuple[TextReader, ...]:
        from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import extract_glyph_texts

        crop = pipe.prompt_template_encode_start_idx

        def count(text: str) -> int:
            chat = [{"role": "system", "content": pipe.system_message}, {"role": "user", "content": text}]
            tokens = pipe.tokenizer.apply_chat_template(chat, continue_final_message=True, return_dict=True)
            return len(tokens.input_ids) - int(crop)

        def quoted(prompt: str) -> str:
            return extract_glyph_texts(prompt) or ""

        return (
            TextReader("tokens of a prompt", pipe.tokenizer_max_length, count),
            TextReader(
                "tokens of the texts in quotation marks",
                pipe.tokenizer_2_max_length,
                lambda text: len(pipe.tokenizer_2(text).input_ids),
                quoted,
            ),
        )


FAMILY = HunyuanVideo15()

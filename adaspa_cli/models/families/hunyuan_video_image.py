"""HunyuanVideo from a picture. Its text is tokens of the picture, then those of the prompt.

There are two kinds. ``token_replace``: the first latent frame is the picture's, and the blocks modulate its tokens by a
timestep of their own. ``latent_concat``: the picture comes as channels, and the first latent frame is dropped at the
end.

The pipeline of diffusers says of no pass which guidance branch it is: the first of a step is the conditional one.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from adaspa_cli.attention.layout import OrderName
from adaspa_cli.config.families import facts_of
from adaspa_cli.distributed.tokens import TokenShare
from adaspa_cli.errors import RunError
from adaspa_cli.models.families.hunyuan_video import HunyuanVideo, HunyuanVideoAttachment
from adaspa_cli.models.family import Classes, Encode, Family
from adaspa_cli.models.forward import Attend
from adaspa_cli.models.random_text import text_noise, text_tokens

_BRANCHES = ("cond", "uncond")
_IMAGE_TOKENS = 576
_MARKS = 4  # tokens of the prompt template that the pipeline cuts out of the prompt


def _replaces_first_frame(config: Any) -> bool:
    replaces: bool = config.image_condition_type == "token_replace"
    return replaces


class HunyuanVideoImageAttachment(HunyuanVideoAttachment):
    """Processors on the dual and single blocks; tells branches apart by their order in a step.

    It names them for the caches of diffusers, which keep what they reuse by the name of the pass.
    """

    def __init__(self, family: Family, pipe: Any, attend: Attend, token_order: OrderName) -> None:
        self._context = ExitStack()  # of the pass in progress
        super().__init__(family, pipe, attend, token_order)
        self._hooks += [one.register_forward_hook(self._after, always_call=True) for one in self.transformers]

    def _on_forward(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super()._on_forward(module, args, kwargs)
        if not self._named:
            self._context.enter_context(module.cache_context(self.branch))
            self._named = False  # by the pipeline

    def _after(self, *_: Any) -> None:
        self._context.close()

    def _check_branch(self) -> None:
        if self._named:
            return
        if self._unnamed == len(_BRANCHES):
            raise RunError("the transformer is called three times in a step, which has two guidance branches at most")
        self.branch = _BRANCHES[self._unnamed]
        self._unnamed += 1

    def lead_frames(self, config: Any) -> int:
        return int(_replaces_first_frame(config))

    def split(self, share: TokenShare) -> None:
        if any(_replaces_first_frame(transformer.config) for transformer in self.transformers):
            raise RunError("this model treats the first frame's tokens apart: they can't be split", hint="drop --gpus")
        super().split(share)


class HunyuanVideoImage(HunyuanVideo):
    """HunyuanVideo, image to video."""

    facts = facts_of("HunyuanVideoImageToVideoPipeline", "HunyuanVideo")
    attachment = HunyuanVideoImageAttachment
    absent = (*HunyuanVideo.absent, "image_processor")
    ending = _MARKS

    def classes(self) -> Classes:
        from diffusers import (
            AutoencoderKLHunyuanVideo,
            HunyuanVideoImageToVideoPipeline,
            HunyuanVideoTransformer3DModel,
        )

        return Classes(HunyuanVideoImageToVideoPipeline, HunyuanVideoTransformer3DModel, AutoencoderKLHunyuanVideo)

    def encoder(self, pipe: Any) -> Encode:
        def encode_prompt(
            image: Any,  # noqa: ARG001  what it shows is of no matter
            prompt: str,
            *,
            max_sequence_length: int = 256,
            image_embed_interleave: int = 2,
            **_ignored: Any,
        ) -> tuple[Tensor, Tensor, Tensor]:
            """Embeddings [1, T, C] of picture and prompt, pooled embeddings [1, P], mask [1, T]."""
            config = self.transformers(pipe)[0].config
            where: Any = {"device": pipe._execution_device, "dtype": self.shape(pipe).dtype}
            of_image, of_text = -(-_IMAGE_TOKENS // image_embed_interleave), max_sequence_length - _MARKS
            embeddings = text_noise(prompt, 1, of_image + of_text, config.text_embed_dim, **where)
            pooled = text_noise(prompt, 1, config.pooled_projection_dim, **where)
            mask = torch.zeros(1, of_image + of_text, dtype=torch.long, device=embeddings.device)
            mask[:, : of_image + text_tokens(prompt, of_text)] = 1
            return embeddings, pooled, mask

        return encode_prompt


FAMILY = HunyuanVideoImage()

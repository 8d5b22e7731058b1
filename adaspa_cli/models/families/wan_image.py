"""Wan 2.1 and 2.2 from a picture: attention of the video is the same.

The picture comes as channels beside those of the noise; in Wan 2.1 also as tokens that the cross-attention looks at. In
Wan 2.2 TI2V it is the first latent frame, whose tokens have a timestep of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from adaspa_cli.config.families import facts_of
from adaspa_cli.config.schema import SamplingConfig
from adaspa_cli.hooks.override import Override
from adaspa_cli.models.families.wan import Wan
from adaspa_cli.models.family import Classes, Encode
from adaspa_cli.models.random_text import text_noise

_IMAGE_TOKENS = 257  # of CLIP


def _text_to_video_embeds() -> Callable[..., Tensor]:
    from diffusers import WanPipeline

    return WanPipeline._get_t5_prompt_embeds  # type: ignore[no-any-return]


class WanImage(Wan):
    """Wan 2.1 and 2.2, image to video."""

    facts = facts_of("WanImageToVideoPipeline", "Wan")
    absent = (*Wan.absent, "image_encoder", "image_processor")

    @contextmanager
    def set_up(self, pipe: Any, sampling: SamplingConfig) -> Iterator[None]:
        """Texts are cleaned as text to video does it, which is the same, but does without the package ftfy."""
        override = Override(pipe, "_get_t5_prompt_embeds", lambda _own: partial(_text_to_video_embeds(), pipe))
        try:
            with super().set_up(pipe, sampling):
                yield
        finally:
            override.restore()

    def classes(self) -> Classes:
        from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel

        return Classes(WanImageToVideoPipeline, WanTransformer3DModel, AutoencoderKLWan)

    def encoder(self, pipe: Any) -> Encode:
        """Stands for ``encode_image`` as well, which Wan 2.1 has."""

        def encode_image(image: Any, device: Any = None) -> Tensor:
            """Embeddings [n, T, C] of n pictures; what they show is of no matter."""
            pictures = len(image) if isinstance(image, list) else 1
            config = self.transformers(pipe)[0].config
            of_two = config.pos_embed_seq_len
            tokens = _IMAGE_TOKENS if of_two is None else of_two // 2
            where: Any = {"device": device, "dtype": self.shape(pipe).dtype}
            return text_noise("picture", pictures, tokens, config.image_dim, **where)

        pipe.encode_image = encode_image
        return super().encoder(pipe)


FAMILY = WanImage()

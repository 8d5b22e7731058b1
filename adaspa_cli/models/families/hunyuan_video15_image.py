"""HunyuanVideo 1.5 from a picture, which comes as channels beside the noise and as the first tokens of the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor

from adaspa_cli.config.families import facts_of
from adaspa_cli.config.schema import SamplingConfig
from adaspa_cli.hooks.override import Override
from adaspa_cli.models.families.hunyuan_video15 import HunyuanVideo15
from adaspa_cli.models.family import Classes
from adaspa_cli.models.random_text import text_noise


class HunyuanVideo15Image(HunyuanVideo15):
    """HunyuanVideo 1.5, image to video."""

    facts = facts_of("HunyuanVideo15ImageToVideoPipeline", "HunyuanVideo 1.5")
    absent: ClassVar[tuple[str, ...]] = (*HunyuanVideo15.absent, "image_encoder", "feature_extractor")

    @contextmanager
    def set_up(self, pipe: Any, sampling: SamplingConfig) -> Iterator[None]:
        """The size is no argument of the call: the pipeline takes the one of its list that is next to the picture's.

        The picture has the size of the video already, so that is the one to take.
        """
        override = Override(pipe.video_processor, "calculate_default_height_width", _size_of_picture)
        try:
            with super().set_up(pipe, sampling):
                yield
        finally:
            override.restore()

    def classes(self) -> Classes:
        from diffusers import (
            AutoencoderKLHunyuanVideo15,
            HunyuanVideo15ImageToVideoPipeline,
            HunyuanVideo15Transformer3DModel,
        )

        return Classes(
            HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Transformer3DModel, AutoencoderKLHunyuanVideo15
        )

    def stand_ins(self, pipe: Any) -> dict[str, Callable[..., Any]]:
        def encode_image(batch_size: int, device: Any, dtype: Any, **_ignored: Any) -> Tensor:
            """Embeddings [B, I, C] of the picture."""
            shape = (1, pipe.vision_num_semantic_tokens, pipe.vision_states_dim)
            return text_noise("", *shape, device=device, dtype=dtype).repeat(batch_size, 1, 1)

        return {**super().stand_ins(pipe), "encode_image": encode_image}


def _size_of_picture(_original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda height, width, target_size: (height, width)  # noqa: ARG005


FAMILY = HunyuanVideo15Image()

"""The families that the common suite runs over: a new family is one more entry of :data:`CASES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from PIL import Image

from tests.pipelines import (
    cogvideox,
    cogvideox_image,
    hunyuan_video,
    hunyuan_video15,
    hunyuan_video_image,
    wan,
    wan_image,
)


@dataclass(frozen=True)
class Case:
    """One family, or a model of it that is built in another way, as a small pipeline with random weights.

    Attributes:
        make: builds the pipeline; the same one each time.
        layers: attention layers of all its transformers.
        guided: arguments of a call that has both branches of guidance; also settings of a run.
        unguided: of one that has the conditional branch alone.
        linears: linear layers that FP8 may replace.
        size: height and width of a small run.
        settings: what else a run of it as a saved pipeline needs, so that it is the same.
        pictures: arguments of a call, and settings of a run, that are pictures.
        picture_each: whether a batch needs a picture for each of its videos.
        refuses: caches and ways of sharing a video that are an error, with a part of the message.
    """

    make: Callable[[], Any]
    layers: int
    guided: Mapping[str, Any]
    unguided: Mapping[str, Any]
    linears: int
    size: Mapping[str, int] = field(default_factory=lambda: {"height": 64, "width": 96})
    settings: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[str, ...] = ()
    picture_each: bool = False
    refuses: Mapping[str, str] = field(default_factory=dict)

    def two(self) -> dict[str, Any]:
        """What a call for two videos needs besides their prompts."""
        return {key: [picture()] * 2 for key in self.pictures} if self.picture_each else {}

    def call(self, guidance: str) -> dict[str, Any]:
        """The arguments of a call of the pipeline, ``guided`` or ``unguided``."""
        return {**self.size, **dict.fromkeys(self.pictures, picture()), **getattr(self, guidance)}


def picture() -> Image.Image:
    """A yellow square on violet."""
    image = Image.new("RGB", (96, 64), (90, 40, 200))
    image.paste("yellow", (20, 20, 50, 50))
    return image


_BY_SCALE = {
    "guided": {"guidance_scale": 5.0, "negative_prompt": "green squares at rest"},
    "unguided": {"guidance_scale": 1.0},
}

_BY_TRUE_SCALE: dict[str, Any] = {
    "guided": {"true_cfg_scale": 4.0, "negative_prompt": "green squares at rest"},
    "unguided": {},
}
_SHIFT = {"flow_shift": 3.0}
# Their text encoders are stand-ins, which only a pipeline with random weights has.
_NO_ENCODERS = {"random_weights": True, "decode": True}
_ONE_OF_A_KIND = {"num_layers": 1, "num_single_layers": 1}  # the longest texts of all
_HUNYUAN_FROM_IMAGE: dict[str, Any] = {
    **_BY_TRUE_SCALE,
    "linears": 17,
    "size": {"height": 32, "width": 96},
    "settings": _NO_ENCODERS,
    "pictures": ("image",),
    "picture_each": True,
}
_HUNYUAN15: dict[str, Any] = {
    **_BY_SCALE,
    "linears": 36,
    "settings": _NO_ENCODERS,
    "refuses": {name: f"no cache '{name}'" for name in ("first-block", "magcache")},
}
_FROM_IMAGE: dict[str, Any] = {**_BY_SCALE, "settings": _SHIFT, "pictures": ("image",)}
_FROM_BOTH = _FROM_IMAGE | {"pictures": ("image", "last_image")}

CASES = {
    "hunyuan": Case(
        partial(hunyuan_video, **_ONE_OF_A_KIND),
        2,
        **_BY_TRUE_SCALE,
        linears=17,
        size={"height": 32, "width": 96},
    ),
    "hunyuan-i2v": Case(
        partial(hunyuan_video_image, "token_replace", **_ONE_OF_A_KIND),
        2,
        **_HUNYUAN_FROM_IMAGE,
        refuses={"tokens": "can't be split"},
    ),
    "hunyuan-i2v-33ch": Case(partial(hunyuan_video_image, "latent_concat", **_ONE_OF_A_KIND), 2, **_HUNYUAN_FROM_IMAGE),
    "hunyuan1.5": Case(hunyuan_video15, 3, **_HUNYUAN15),
    "hunyuan1.5-i2v": Case(partial(hunyuan_video15, image=True), 3, **_HUNYUAN15, pictures=("image",)),
    "cogvideox-1.0": Case(partial(cogvideox, "1.0"), 2, **_BY_SCALE, linears=12),
    "cogvideox-1.5": Case(partial(cogvideox, "1.5"), 2, **_BY_SCALE, linears=12),
    "cogvideox-1.0-i2v": Case(
        partial(cogvideox_image, "1.0"), 2, **_BY_SCALE, linears=12, pictures=("image",), picture_each=True
    ),
    "cogvideox-1.5-i2v": Case(
        partial(cogvideox_image, "1.5"), 2, **_BY_SCALE, linears=12, pictures=("image",), picture_each=True
    ),
    "wan2.1": Case(wan, 2, **_BY_SCALE, linears=20, settings=_SHIFT),
    "wan2.2": Case(partial(wan, "2.2"), 4, **_BY_SCALE, linears=40, settings=_SHIFT),
    "wan2.2-5b": Case(
        partial(wan, "2.2-5b"), 2, **_BY_SCALE, linears=20, settings=_SHIFT, size={"height": 128, "width": 192}
    ),
    "wan2.1-i2v": Case(wan_image, 2, **_FROM_IMAGE, linears=24),
    "wan2.1-flf2v": Case(partial(wan_image, "2.1-flf"), 2, **_FROM_BOTH, linears=24),
    "wan2.2-i2v": Case(partial(wan_image, "2.2"), 4, **_FROM_BOTH, linears=40),
    "wan2.2-5b-i2v": Case(
        partial(wan_image, "2.2-5b"), 2, **_FROM_IMAGE, linears=20, size={"height": 128, "width": 192}
    ),
}

"""The pictures that a run hands to a pipeline which makes videos from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaspa_cli.config.families import FamilyFacts
from adaspa_cli.config.schema import GenerateConfig
from adaspa_cli.files.pictures import read_pictures

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY = (128, 128, 128)


def call_pictures(facts: FamilyFacts, config: GenerateConfig) -> dict[str, Image]:
    """The pictures among a pipeline's call arguments, in the size of the video.

    With random weights a grey picture stands for the first one if none is given: what it shows costs no time.

    Raises:
        ConfigError: the model needs a picture and has none, or a file is of no use.
    """
    from PIL import Image

    sampling = config.sampling
    facts.check_image(sampling, random_weights=config.model.random_weights)
    found = {
        key: picture.fitted(sampling.height, sampling.width)
        for key, picture in read_pictures(sampling.pictures).items()
    }
    if facts.images and "image" not in found:
        found["image"] = Image.new("RGB", (sampling.width, sampling.height), _GREY)
    return found

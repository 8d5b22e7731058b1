"""CogVideoX 1.0 and 1.5, from a picture: it comes as channels beside those of the noise, so attention is the same.

The VAE encodes the picture with a draw from the run's generator, before the noise is drawn from it.
"""

from __future__ import annotations

from adaspa_cli.config.families import facts_of
from adaspa_cli.models.families.cogvideox import CogVideoX
from adaspa_cli.models.family import Classes


class CogVideoXImage(CogVideoX):
    """CogVideoX 1.0 and 1.5, image to video."""

    facts = facts_of("CogVideoXImageToVideoPipeline", "CogVideoX")

    def classes(self) -> Classes:
        from diffusers import AutoencoderKLCogVideoX, CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel

        return Classes(CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel, AutoencoderKLCogVideoX)


FAMILY = CogVideoXImage()

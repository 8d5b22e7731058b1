"""A player of two videos in step, as a page has it: what its template and its script need."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Name, digits, unit, and the axis: from, to, and the distance of its lines. It is longer where a value lies outside.
_CURVES = {"psnr": ("PSNR", 2, " dB", (20, 50, 10)), "ssim": ("SSIM", 4, "", (0.8, 1, 0.1))}


@dataclass(frozen=True)
class Clip:
    """A video that can be played beside the reference.

    Attributes:
        name: of its run.
        video: data URI.
        curves: PSNR and SSIM of each frame against the reference, by name; empty without.
    """

    name: str
    video: str
    fps: int
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Player:
    """Videos of one shape; one of them is compared with the reference at a time.

    Attributes:
        reference: number of the clip that the others are compared with.
        ids: of elements elsewhere on the page that hold the videos, so that each is there once; None if the player
            itself holds its two.
    """

    clips: Sequence[Clip]
    reference: int
    frames: int
    height: int
    width: int
    ids: Sequence[str] | None = None

    @property
    def chosen(self) -> bool:
        """Whether the reader chooses what is compared."""
        return self.ids is not None

    @property
    def first(self) -> int:
        """The clip that is shown at first."""
        return next(number for number in range(len(self.clips)) if number != self.reference)

    @property
    def pair(self) -> tuple[Clip, Clip]:
        """What is shown at first, and the reference."""
        return self.clips[self.first], self.clips[self.reference]

    def data(self) -> str:
        """What the script needs, as JSON."""
        return json.dumps(
            {
                "frames": self.frames,
                "reference": self.reference,
                "shown": self.first,
                "autoplay": not self.chosen,
                "names": [clip.name for clip in self.clips],
                "ids": self.ids,
                "curves": [
                    {
                        title: {"values": list(clip.curves[name]), "digits": digits, "unit": unit, "axis": axis}
                        for name, (title, digits, unit, axis) in _CURVES.items()
                        if clip.curves.get(name)
                    }
                    for clip in self.clips
                ],
            }
        )

"""The words of the drawn world, its colours, and what a scene is made of."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

Rgb = tuple[int, int, int]

SHAPES: Final = ("circle", "square", "triangle", "star", "heart", "ring")
COLORS: Final = MappingProxyType(
    {
        "red": (222, 52, 56),
        "orange": (245, 140, 40),
        "yellow": (248, 216, 64),
        "green": (62, 178, 86),
        "blue": (58, 112, 236),
        "purple": (146, 74, 204),
        "pink": (248, 142, 190),
        "white": (246, 246, 244),
    }
)
BACKGROUNDS: Final = MappingProxyType(
    {
        "black": (26, 27, 32),
        "gray": (132, 134, 138),
        "white": (226, 226, 222),
        "blue": (44, 66, 132),
        "green": (44, 98, 66),
        "brown": (120, 84, 56),
    }
)
PATTERNS: Final = ("plain", "gradient", "striped", "checkered", "speckled", "cloudy")
MOTIONS: Final = ("left", "right", "up", "down", "still", "grows", "shrinks", "rotates", "bounces")
SIZES: Final = ("small", "medium", "large")
SPEEDS: Final = ("slow", "medium", "fast")
DRIFTS: Final = ("still", "left", "right", "up", "down")
CROSSINGS: Final = ("", "behind", "front")

DIRECTIONS: Final = MappingProxyType({"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)})
ROUND: Final = ("circle", "ring")  # whose turning nobody sees
DRIFTING: Final = ("striped", "checkered", "speckled", "cloudy")  # patterns that show a drift


@dataclass(frozen=True)
class Thing:
    """One object: ``size`` and ``speed`` are of the middling kind unless a caption says otherwise."""

    shape: str
    color: str
    motion: str
    size: str = "medium"
    speed: str = "medium"

    def __post_init__(self) -> None:
        allowed = {"shape": SHAPES, "color": tuple(COLORS), "motion": MOTIONS, "size": SIZES, "speed": SPEEDS}
        _check(self, allowed)

    def is_drawable(self, background: str) -> bool:
        """False where the object would vanish in its background, or turn without anybody seeing it."""
        return self.color != background and not (self.shape in ROUND and self.motion == "rotates")


@dataclass(frozen=True)
class Scene:
    """What a clip shows: one to three objects of different colours before a background.

    With a ``crossing`` there are two, and the first moves past the second, behind it or in front of it.
    """

    things: tuple[Thing, ...]
    background: str
    pattern: str = "plain"
    drift: str = "still"
    crossing: str = ""

    def __post_init__(self) -> None:
        allowed = {"background": tuple(BACKGROUNDS), "pattern": PATTERNS, "drift": DRIFTS, "crossing": CROSSINGS}
        _check(self, allowed)
        if not 1 <= len(self.things) <= 3 or len({thing.color for thing in self.things}) != len(self.things):
            raise ValueError("a scene has one to three objects of different colours")


def _check(value: Thing | Scene, allowed: dict[str, tuple[str, ...]]) -> None:
    for field, words in allowed.items():
        if getattr(value, field) not in words:
            raise ValueError(f"{field} is {getattr(value, field)!r}; allowed are {', '.join(words)}")

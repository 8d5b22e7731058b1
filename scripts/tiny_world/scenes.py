"""Which scenes there are, which are never trained on, and how they are drawn by lot.

A twelfth of all combinations of shape, colour, motion and background colour is held out: no training clip has an object
of such a combination, alone or beside others. The 256 captions of the evaluation are made of these alone, so that they
measure whether the model combines words rather than remembers clips.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
from collections.abc import Sequence

from scripts.tiny_world.words import (
    BACKGROUNDS,
    COLORS,
    DIRECTIONS,
    DRIFTING,
    MOTIONS,
    PATTERNS,
    SHAPES,
    Scene,
    Thing,
)

# How often a scene has one, two, three objects, or two that cross.
KINDS = ("one", "two", "three", "crossing")
SHARES = (0.28, 0.37, 0.13, 0.22)
_ONE_IN = 12


@functools.cache
def is_held_out(shape: str, color: str, motion: str, background: str) -> bool:
    """Whether no training clip has such an object before such a background."""
    digest = hashlib.sha256(f"{shape} {color} {motion} {background}".encode()).digest()
    return int.from_bytes(digest[:4], "little") % _ONE_IN == 0


@functools.cache
def _choices(background: str, held_out: bool) -> tuple[Thing, ...]:
    words = itertools.product(SHAPES, COLORS, MOTIONS)
    things = (Thing(shape, color, motion) for shape, color, motion in words)
    return tuple(
        thing
        for thing in things
        if thing.is_drawable(background) and is_held_out(thing.shape, thing.color, thing.motion, background) == held_out
    )


def random_scene(rng: random.Random, *, kind: str | None = None, held_out: bool = False) -> Scene:
    """A scene of a kind, drawn by lot; all of its objects are held out, or none is."""
    kind = kind or rng.choices(KINDS, SHARES)[0]
    background, pattern = rng.choice(list(BACKGROUNDS)), rng.choice(PATTERNS)
    drift = rng.choice(list(DIRECTIONS)) if pattern in DRIFTING and rng.random() < 0.4 else "still"
    choices = _choices(background, held_out)
    if kind == "crossing":
        first = _pick([thing for thing in choices if thing.motion in DIRECTIONS], rng)
        second = _pick([t for t in choices if t.motion in ("still", "rotates") and t.color != first.color], rng)
        things = [_small_and_fast(first), second]
        return Scene(tuple(things), background, pattern, drift, rng.choice(("behind", "front")))
    things = []
    for _ in range(KINDS.index(kind) + 1):
        thing = _pick([c for c in choices if c.color not in {t.color for t in things}], rng)
        things.append(_sized(thing, rng, len(things), KINDS.index(kind) + 1))
    return Scene(tuple(things), background, pattern, drift)


def _pick(choices: Sequence[Thing], rng: random.Random) -> Thing:
    """One of them, so that all motions come equally often."""
    motion = rng.choice(sorted({thing.motion for thing in choices}))
    return rng.choice([thing for thing in choices if thing.motion == motion])


def _small_and_fast(thing: Thing) -> Thing:
    """Of what crosses: it must come out on the other side."""
    return Thing(thing.shape, thing.color, thing.motion, "small", "fast")


def _sized(thing: Thing, rng: random.Random, index: int, count: int) -> Thing:
    """The same with a size and a speed by lot. Where there are several, not all can be large or fast."""
    large = 0.3 if count == 1 or (count == 2 and index == 0) else 0.0
    size = rng.choices(("small", "medium", "large"), (0.3 if count < 3 else 0.6, 0.4, large))[0]
    if thing.motion in ("grows", "shrinks"):
        size = "medium"
    moves = thing.motion in DIRECTIONS
    speed = (
        rng.choices(("slow", "medium", "fast"), (0.3, 0.4, 0.3))[0] if moves or thing.motion == "rotates" else "medium"
    )
    if size == "large" and moves and speed == "fast":
        speed = "medium"
    return Thing(thing.shape, thing.color, thing.motion, size, speed)

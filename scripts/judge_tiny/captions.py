"""What may be drawn and how it is put into words: scenes, held-out scenes, wordings.

A set of 64 (shape, colour, background, motion) combinations is never drawn for training, neither alone nor beside
another object; captions of these measure whether the model combines words rather than remembers clips. The set is
balanced: each motion 8 times, each colour once per motion.
"""

import itertools
import random
from collections.abc import Callable, Sequence

from scripts.judge_tiny.judge import BACKGROUNDS, COLORS, MOTIONS, SHAPES, Scene

# verb with "a circle ...", participle with "a circle is ..." or on its own
PHRASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "left": (("moves left", "moves to the left"), ("moving left", "moving to the left", "going left")),
    "right": (("moves right", "moves to the right"), ("moving right", "moving to the right", "going right")),
    "up": (("moves up", "moves upwards"), ("moving up", "moving upwards", "going up")),
    "down": (("moves down", "moves downwards"), ("moving down", "moving downwards", "going down")),
    "still": (("stays still", "does not move"), ("staying still", "standing still")),
    "grows": (("grows", "gets bigger"), ("growing", "getting bigger")),
    "rotates": (("rotates", "spins"), ("rotating", "spinning")),
    "bounces": (("bounces", "bounces up and down"), ("bouncing", "bouncing up and down")),
}

_SINGLE = (
    "{a_object} {verb} on {a_background} background",
    "on {a_background} background, {a_object} is {participle}",
    "{object} {participle}, {background} background",
    "{a_object} that {verb} in front of {a_background} background",
    "{background} background with {a_object} {participle}",
    "a video of {a_object} {participle} on {a_background} background",
)
_PAIR = (
    "{a_object} {verb} and {a_object2} {verb2} on {a_background} background",
    "on {a_background} background, {a_object} is {participle} and {a_object2} is {participle2}",
    "{object} {participle}, {object2} {participle2}, {background} background",
)


def all_scenes() -> list[Scene]:
    """Every drawable scene, in a fixed order."""
    words = itertools.product(SHAPES, COLORS, BACKGROUNDS, MOTIONS)
    scenes = (Scene(shape, color, background, motion) for shape, color, background, motion in words)
    return [scene for scene in scenes if scene.is_drawable()]


def held_out_scenes() -> list[Scene]:
    """The 64 scenes that are never drawn for training: 8 for each motion, each with another colour."""
    rng = random.Random(20250)
    chosen: list[Scene] = []
    for motion in MOTIONS:
        shapes = [shape for shape in SHAPES if not (motion == "rotates" and shape == "circle")]
        shapes = (shapes * 3)[: len(COLORS)]
        rng.shuffle(shapes)
        offset = rng.randrange(len(BACKGROUNDS))
        for index, color in enumerate(COLORS):
            names = [name for name in BACKGROUNDS if name != color]
            chosen.append(Scene(shapes[index], color, names[(offset + index) % len(names)], motion))
    return chosen


def training_scenes() -> list[Scene]:
    """Every drawable scene that is not held out."""
    held_out = set(held_out_scenes())
    return [scene for scene in all_scenes() if scene not in held_out]


def held_out_captions() -> list[str]:
    """Standard wording of each held-out scene."""
    return [standard_caption(scene) for scene in held_out_scenes()]


def standard_caption(scene: Scene) -> str:
    """For instance ``"a red circle moves left on a blue background"``."""
    return _fill(_SINGLE[0], [scene], lambda options: options[0])


def caption_of(scenes: Sequence[Scene], rng: random.Random) -> str:
    """Caption of one scene, or of two on the same background, in a wording drawn from ``rng``."""
    wording = rng.choice(_SINGLE if len(scenes) == 1 else _PAIR)
    caption = _fill(wording, scenes, rng.choice)
    if rng.random() < 0.2:
        caption += "."
    return caption


def every_wording() -> list[str]:
    """Captions that together hold every word in every place, the corpus of the tokenizers."""
    rng = random.Random(0)
    scenes = all_scenes()
    corpus = [standard_caption(scene) for scene in scenes]
    corpus += [caption_of([rng.choice(scenes)], rng) for _ in range(3000)]
    for _ in range(1000):
        first, second = rng.sample(scenes, 2)
        second = Scene(second.shape, second.color, first.background, second.motion)
        corpus.append(caption_of([first, second], rng))
    return corpus


def _fill(wording: str, scenes: Sequence[Scene], choose: Callable[[Sequence[str]], str]) -> str:
    fields = {"background": scenes[0].background, "a_background": _with_article(scenes[0].background)}
    for scene, suffix in zip(scenes, ("", "2"), strict=False):
        verbs, participles = PHRASES[scene.motion]
        fields[f"object{suffix}"] = f"{scene.color} {scene.shape}"
        fields[f"a_object{suffix}"] = _with_article(f"{scene.color} {scene.shape}")
        fields[f"verb{suffix}"] = choose(verbs)
        fields[f"participle{suffix}"] = choose(participles)
    return wording.format_map(fields)


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"

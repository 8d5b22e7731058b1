"""Scenes put into words: many orders, synonyms, and never a word that the clip does not show.

Sizes and speeds of the middling kind are not named; others nearly always are. A drifting background is named as what
it is or as the opposite motion of a camera.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache

from scripts.tiny_world.scenes import random_scene
from scripts.tiny_world.words import Scene, Thing

Choose = Callable[[Sequence[str]], str]

# verb with "a circle ...", participle with "a circle is ..." or on its own; the first is the standard wording
PHRASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "left": (("moves left", "moves to the left", "slides left"), ("moving left", "going to the left", "sliding left")),
    "right": (
        ("moves right", "moves to the right", "slides right"),
        ("moving right", "going to the right", "sliding right"),
    ),
    "up": (("moves up", "moves upwards", "rises"), ("moving up", "going upwards", "rising")),
    "down": (("moves down", "moves downwards", "sinks"), ("moving down", "going downwards", "sinking")),
    "still": (("stays still", "does not move", "rests"), ("staying still", "standing still", "resting")),
    "grows": (("grows", "gets bigger"), ("growing", "getting bigger")),
    "shrinks": (("shrinks", "gets smaller"), ("shrinking", "getting smaller")),
    "rotates": (("rotates", "spins", "turns"), ("rotating", "spinning", "turning")),
    "bounces": (("bounces", "bounces up and down", "hops"), ("bouncing", "bouncing up and down", "hopping")),
}
SHAPE_WORDS = {"circle": ("circle", "disc"), "square": ("square", "box")}
COLOR_WORDS = {"purple": ("purple", "violet"), "gray": ("gray", "grey")}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
SPEED_WORDS = {"slow": ("slowly",), "fast": ("quickly", "fast")}
PATTERN_WORDS = {
    "plain": ("", "", "plain"),
    "gradient": ("gradient", "shaded"),
    "striped": ("striped",),
    "checkered": ("checkered", "checked"),
    "speckled": ("speckled", "dotted"),
    "cloudy": ("cloudy", "clouded"),
}
_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
_SAID = 0.85  # how often a size or speed is named

_SINGLE = (
    "{0a} {0verb} on {a_ground}{that_drifts}",
    "on {a_ground}{that_drifts}, {0a} {0verb}",
    "{0} {0part}, {ground}{drifting}",
    "{0a} that {0verb} before {a_ground}{that_drifts}",
    "{ground}{drifting} with {0a} {0part}",
    "a video of {0a} {0part} on {a_ground}{that_drifts}",
    "there is {0a} {0part} on {a_ground}{camera}",
    "{0a} {0verb} on {a_ground}{camera}",
)
_MANY = (
    "{verbs} on {a_ground}{that_drifts}",
    "on {a_ground}{that_drifts}, {verbs}",
    "{parts}, {ground}{drifting}",
    "{ground}{drifting} with {a_parts}",
    "a video of {a_parts} on {a_ground}{camera}",
    "{verbs} before {a_ground}{camera}",
)
_CROSSING = (
    "{0a} {0verb} {past} {1a}{1that} on {a_ground}{that_drifts}",
    "on {a_ground}{that_drifts}, {0a} {0verb} {past} {1a}{1that}",
    "{1a} {1verb} while {0a} {0verb} {past} it on {a_ground}{camera}",
    "{0} {0part} {past} {1a}{1that}, {ground}{drifting}",
)
_PAST = {"behind": "behind", "front": "in front of"}


def standard_caption(scene: Scene) -> str:
    """One wording of a scene, always the same: ``"a red circle moves left on a blue striped background"``."""
    wordings = _CROSSING if scene.crossing else _SINGLE if len(scene.things) == 1 else _MANY
    return _fill(wordings[0], scene, lambda words: words[0], lambda _: True)


def caption_of(scene: Scene, rng: random.Random) -> str:
    """A wording drawn from ``rng``."""
    wording = rng.choice(_CROSSING if scene.crossing else _SINGLE if len(scene.things) == 1 else _MANY)
    caption = _fill(wording, scene, rng.choice, lambda share: rng.random() < share)
    return caption + "." if rng.random() < 0.2 else caption


@cache
def every_wording() -> Sequence[str]:
    """Captions that together hold every word in every place, the corpus of the tokenizers."""
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(6000)]
    return (*map(standard_caption, scenes), *(caption_of(scene, rng) for scene in scenes))


def _fill(wording: str, scene: Scene, choose: Choose, says: Callable[[float], bool]) -> str:
    fields: dict[str, str] = _ground(scene, choose, says)
    fields["past"] = _PAST.get(scene.crossing, "")
    nouns, verbs, parts = [], [], []
    for thing in scene.things:
        nouns.append(_noun(thing, choose, says))
        verbs.append(_moved(thing, 0, choose, says))
        parts.append(_moved(thing, 1, choose, says))
    for index, noun in enumerate(nouns):
        fields[f"{index}noun"], fields[f"{index}a"] = noun, _with_article(noun)
        fields[f"{index}verb"], fields[f"{index}part"] = verbs[index], parts[index]
    if scene.crossing:  # an object that rests may go without saying
        rests = scene.things[1].motion == "still"
        fields["1that"] = "" if rests else f" that {verbs[1]}"
    fields["verbs"] = _listed([f"{_with_article(n)} {v}" for n, v in zip(nouns, verbs, strict=True)])
    fields["a_parts"] = _listed([f"{_with_article(n)} {p}" for n, p in zip(nouns, parts, strict=True)])
    fields["parts"] = ", ".join(f"{n} {p}" for n, p in zip(nouns, parts, strict=True))
    for name, text in fields.items():
        wording = wording.replace("{" + name + "}", text)
    return wording.replace("{0}", nouns[0])


def _ground(scene: Scene, choose: Choose, says: Callable[[float], bool]) -> dict[str, str]:
    pattern, color = (
        choose(PATTERN_WORDS[scene.pattern]),
        choose(COLOR_WORDS.get(scene.background, (scene.background,))),
    )
    words = [color, pattern] if says(0.5) else [pattern, color]
    ground = f"{' '.join(word for word in words if word)} background"
    drift = scene.drift
    drifts = {"that_drifts": "", "drifting": "", "camera": ""}
    if drift != "still":
        drifts["that_drifts"] = choose((f" that drifts {drift}", f" drifting {drift}"))
        drifts["drifting"] = f" drifting {drift}"
        drifts["camera"] = choose((f" while the camera moves {_OPPOSITE[drift]}", f" that drifts {drift}"))
    return {"ground": ground, "a_ground": _with_article(ground), **drifts}


def _noun(thing: Thing, choose: Choose, says: Callable[[float], bool]) -> str:
    named = thing.size != "medium" and says(_SAID)
    words = [choose(SIZE_WORDS[thing.size])] if named else []
    words.append(choose(COLOR_WORDS.get(thing.color, (thing.color,))))
    return " ".join([*words, choose(SHAPE_WORDS.get(thing.shape, (thing.shape,)))])


def _moved(thing: Thing, form: int, choose: Choose, says: Callable[[float], bool]) -> str:
    moved = choose(PHRASES[thing.motion][form])
    if thing.speed == "medium" or not says(_SAID):
        return moved
    adverb = choose(SPEED_WORDS[thing.speed])
    return f"{adverb} {moved}" if adverb != "fast" and not says(0.6) else f"{moved} {adverb}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"

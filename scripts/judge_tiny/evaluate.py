"""Measures how well the model follows captions of which it has never seen a clip, and draws contact sheets."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import HunyuanVideoPipeline
from PIL import Image, ImageDraw

from scripts.judge_tiny.captions import held_out_scenes, standard_caption
from scripts.judge_tiny.judge import ATTRIBUTES, MOTIONS, NOTHING, SHAPES, Scene, Verdict, judge_clip
from scripts.train_world.pool import Geometry
from scripts.train_world.sampling import sample_captions

_COLUMNS = 6
_ROWS = 16
_CELL = 96
_LABEL = 20


@dataclass(frozen=True)
class Judged:
    """A scene that was asked for, the clip that came (uint8 [F, H, W, 3]), and what the judge saw in it."""

    scene: Scene
    frames: Any
    verdict: Verdict


def evaluate(
    pipe: HunyuanVideoPipeline,
    geometry: Geometry,
    out: Path,
    *,
    steps: int = 12,
    batch: int = 16,
    seed: int = 0,
    limit: int | None = None,
) -> dict[str, Any]:
    """Sample the held-out captions and write ``evaluation.json`` and ``sheet-N.png`` to ``out``.

    Returns:
        What the JSON holds: ``accuracy`` per attribute, ``confusion`` of shape and motion, one record per clip.
    """
    scenes = held_out_scenes()[:limit]
    results = []
    for result in sample_scenes(pipe, scenes, geometry, steps=steps, batch=batch, seed=seed):
        results.append(result)
        if len(results) % batch == 0:
            print(f"{len(results)}/{len(scenes)} clips", flush=True)
    report = {
        "clips": len(results),
        "steps": steps,
        "seed": seed,
        "accuracy": {name: round(share, 4) for name, share in accuracy(results).items()},
        "confusion": {name: confusion(results, name) for name in ("shape", "motion")},
        "records": [_record(result) for result in results],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    for index, start in enumerate(range(0, len(results), _ROWS)):
        contact_sheet(results[start : start + _ROWS]).save(out / f"sheet-{index}.png", optimize=True)
    print_table(report)
    return report


def sample_scenes(
    pipe: HunyuanVideoPipeline,
    scenes: Sequence[Scene],
    geometry: Geometry,
    *,
    steps: int,
    batch: int,
    seed: int = 0,
) -> Iterator[Judged]:
    """Sample the standard caption of each scene and judge the clip."""
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        captions = [standard_caption(scene) for scene in part]
        clips = sample_captions(pipe, captions, geometry, steps=steps, seed=seed + start)
        for scene, frames in zip(part, clips, strict=True):
            yield Judged(scene, frames, judge_clip(frames))


def accuracy(results: Sequence[Judged]) -> dict[str, float]:
    """Share of clips that are right, for each attribute and for all of them together."""
    hits = [result.verdict.hits(result.scene) for result in results]
    shares = {name: sum(hit[name] for hit in hits) / len(hits) for name in ATTRIBUTES}
    return {**shares, "all": sum(all(hit.values()) for hit in hits) / len(hits)}


def confusion(results: Sequence[Judged], attribute: str) -> dict[str, dict[str, int]]:
    """Asked for -> seen -> number of clips."""
    counts: dict[str, Counter[str]] = {}
    for result in results:
        seen = getattr(result.verdict, attribute)
        counts.setdefault(getattr(result.scene, attribute), Counter())[seen] += 1
    return {asked: dict(seen) for asked, seen in counts.items()}


def print_table(report: dict[str, Any]) -> None:
    """Accuracies and confusion tables on stdout."""
    for name, share in report["accuracy"].items():
        print(f"{name:>10}  {share:6.1%}")
    for attribute, words in (("shape", SHAPES), ("motion", MOTIONS)):
        table, columns = report["confusion"][attribute], (*words, NOTHING)
        print(f"\n{attribute}: asked for (rows), seen (columns)")
        print(" " * 10 + "".join(f"{word:>10}" for word in columns))
        for asked in words:
            row = table.get(asked, {})
            print(f"{asked:>10}" + "".join(f"{row.get(seen, 0) or '.':>10}" for seen in columns))


def contact_sheet(results: Sequence[Judged]) -> Image.Image:
    """One row per clip: the caption, what is wrong with the clip, and 6 frames spread over time."""
    row = _CELL + _LABEL
    sheet = Image.new("RGB", (_COLUMNS * _CELL, row * len(results)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, result in enumerate(results):
        wrong = [f"{name}: {getattr(result.verdict, name)}" for name, hit in _hits(result).items() if not hit]
        note = f"  [{', '.join(wrong)}]" if wrong else ""
        pen.text(
            (3, index * row + 4),
            standard_caption(result.scene) + note,
            fill="firebrick" if wrong else "black",
        )
        picks = np.linspace(0, len(result.frames) - 1, _COLUMNS).round().astype(int)
        for column, pick in enumerate(picks):
            frame = Image.fromarray(result.frames[pick]).resize((_CELL, _CELL), Image.Resampling.BOX)
            sheet.paste(frame, (column * _CELL, index * row + _LABEL))
    return sheet


def _hits(result: Judged) -> dict[str, bool]:
    return result.verdict.hits(result.scene)


def _record(result: Judged) -> dict[str, Any]:
    seen = {name: getattr(result.verdict, name) for name in ATTRIBUTES}
    return {"caption": standard_caption(result.scene), "seen": seen, "right": all(_hits(result).values())}

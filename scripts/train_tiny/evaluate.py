"""Measures how well the model follows captions of which it has never seen a clip, and draws contact sheets."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import HunyuanVideoPipeline
from PIL import Image, ImageDraw

from scripts.clip_judge import ATTRIBUTES, MOTIONS, NOTHING, SHAPES
from scripts.train_tiny.captions import held_out_scenes, standard_caption
from scripts.train_tiny.pool import Geometry
from scripts.train_tiny.sampling import Judged, accuracy, sample_scenes
from scripts.train_tiny.vae import in_one_piece

_COLUMNS = 6
_ROWS = 16
_CELL = 96
_LABEL = 20


def load_folder(folder: Path, device: torch.device) -> HunyuanVideoPipeline:
    """An exported pipeline, in float32."""
    pipe = HunyuanVideoPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    in_one_piece(pipe.vae)
    pipe.set_progress_bar_config(disable=True)
    return pipe


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

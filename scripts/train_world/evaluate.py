"""Samples held-out scenes, judges them, writes a table by category, and sheets for people who don't know the captions.

Several processes share the scenes; each writes what it judged, and the first one puts it together.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import HunyuanVideoPipeline
from PIL import Image

from scripts.tiny_world.__main__ import sheet
from scripts.tiny_world.captions import standard_caption
from scripts.tiny_world.judge import Verdict, judge
from scripts.tiny_world.plan import held_out_scenes, spread
from scripts.tiny_world.words import Scene
from scripts.train_world.parallel import barrier, rank, world
from scripts.train_world.pool import Geometry
from scripts.train_world.sampling import sample_captions

SHEET_CLIPS = 24
_SHEET_ROWS = 8
_MOST_JUDGED = 160  # pixels a side; larger clips are halved, which the judge was checked with and is faster


@dataclass(frozen=True)
class JudgedScene:
    """A scene that was asked for, and what the judge saw."""

    scene: Scene
    verdict: Verdict
    frames: Any


def judged(
    pipe: HunyuanVideoPipeline, scenes: Sequence[Scene], geometry: Geometry, *, steps: int, batch: int, seed: int
) -> list[JudgedScene]:
    """Sample the standard caption of each scene, with a seed of its own, and judge the clip."""
    results = []
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        clips = sample_captions(pipe, list(map(standard_caption, part)), geometry, steps=steps, seed=seed + start)
        results += [JudgedScene(scene, judge(halved(f)), f) for scene, f in zip(part, clips, strict=True)]
    return results


def halved(frames: Any) -> Any:
    """Frames uint8 [F, H, W, 3] as they are judged: large ones at half their size."""
    if min(frames.shape[1:3]) <= _MOST_JUDGED:
        return frames
    small = F.avg_pool2d(torch.from_numpy(frames).permute(0, 3, 1, 2).float(), 2)
    return small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def shares_of(results: Iterable[JudgedScene]) -> dict[str, tuple[int, int]]:
    """Category -> right, of how many."""
    return counted(result.verdict.hits(result.scene) for result in results)


def counted(hits: Iterable[dict[str, list[bool]]]) -> dict[str, tuple[int, int]]:
    """Category -> right, of how many, of what a verdict hit of each scene."""
    right: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for found in hits:
        for category, values in found.items():
            right[category] += sum(values)
            count[category] += len(values)
    return {category: (right[category], count[category]) for category in count if count[category]}


def evaluate(
    pipe: HunyuanVideoPipeline,
    geometry: Geometry,
    out: Path,
    *,
    steps: int = 14,
    batch: int = 8,
    seed: int = 0,
    limit: int | None = None,
) -> dict[str, Any] | None:
    """Judge the held-out scenes, or some spread over them.

    Writes ``evaluation.json``, ``sheet-N.png`` without captions, and ``sheets.json`` with the captions.

    Returns:
        What ``evaluation.json`` holds, in the first process.
    """
    scenes = spread(held_out_scenes(), limit or len(held_out_scenes()))
    sheets = {standard_caption(scene) for scene in spread(scenes, min(SHEET_CLIPS, len(scenes)))}
    first, last = (number * len(scenes) // world() for number in (rank(), rank() + 1))
    results = []
    for start in range(first, last, batch):
        part = scenes[start : min(last, start + batch)]
        results += judged(pipe, part, geometry, steps=steps, batch=batch, seed=seed + start)
        if rank() == 0:
            print(f"{len(results)} of {last - first} clips", flush=True)
    records = [_record(first + index, result) for index, result in enumerate(results)]
    shown = [(first + i, r) for i, r in enumerate(results) if standard_caption(r.scene) in sheets]
    out.mkdir(parents=True, exist_ok=True)
    (out / f"part-{rank()}.json").write_text(json.dumps(records) + "\n")
    for number, result in shown:
        Image.fromarray(_strip(result.frames)).save(out / f"strip-{number:03d}.png")
    barrier()
    settings = {"steps": steps, "shift": pipe.scheduler.config.shift, "seed": seed, **asdict(geometry)}
    return _collected(out, settings) if rank() == 0 else None


def _strip(frames: Any, columns: int = 6) -> Any:
    """Frames spread over a clip's time, side by side, at half size."""
    picks = np.linspace(0, len(frames) - 1, columns).round().astype(int)
    return np.concatenate([halved(frames)[pick] for pick in picks], axis=1)


def _collected(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Put the parts of all processes together, and remove them."""
    parts = sorted(out.glob("part-*.json"))
    records = sorted((record for part in parts for record in json.loads(part.read_text())), key=lambda r: r["number"])
    by_kind: dict[str, list[dict[str, list[bool]]]] = defaultdict(list)
    for record in records:
        by_kind[record["kind"]].append(record["hits"])
    report = {
        "clips": len(records),
        **settings,
        "right": counted(record["hits"] for record in records),
        "by_kind": {kind: counted(hits) for kind, hits in by_kind.items()},
        "records": records,
    }
    (out / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    captions = {record["number"]: record["caption"] for record in records}
    strips = sorted(out.glob("strip-*.png"))
    told = {}
    for index in range(0, len(strips), _SHEET_ROWS):
        rows = strips[index : index + _SHEET_ROWS]
        images = [np.asarray(Image.open(path))[None] for path in rows]
        sheet(images, [f"clip {index + row}" for row in range(len(rows))], columns=1).save(
            out / f"sheet-{index // _SHEET_ROWS}.png", optimize=True
        )
        told.update({f"clip {index + row}": captions[int(path.stem[6:])] for row, path in enumerate(rows)})
    (out / "sheets.json").write_text(json.dumps(told, indent=1) + "\n")
    for path in (*parts, *strips):
        path.unlink()
    print(table(report), flush=True)
    return report


def table(report: dict[str, Any]) -> str:
    """The share that is right by category, of all scenes and of each kind, as Markdown."""
    kinds = list(report["by_kind"])
    lines = [f"| category | all | {' | '.join(kinds)} |", "|---|---:" + "|---:" * len(kinds) + "|"]
    for category, (right, count) in report["right"].items():
        cells = [f"{100 * right / count:.1f} % of {count}"]
        for kind in kinds:
            found = report["by_kind"][kind].get(category)
            cells.append(f"{100 * found[0] / found[1]:.1f} %" if found else "")
        lines.append(f"| {category} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _record(number: int, result: JudgedScene) -> dict[str, Any]:
    scene = result.scene
    kind = "crossing" if scene.crossing else ("one", "two", "three")[len(scene.things) - 1]
    seen = {name: value for name, value in asdict(result.verdict).items() if name != "things"}
    things = [asdict(thing) for thing in result.verdict.things.values()]
    caption = standard_caption(scene)
    hits = result.verdict.hits(scene)
    return {"number": number, "kind": kind, "caption": caption, "seen": {**seen, "things": things}, "hits": hits}

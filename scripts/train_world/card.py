"""README.md and ``vocabulary.json`` of the exported model, with figures from the records of training and evaluation."""

import json
import re
from pathlib import Path
from typing import Any

from adaspa_cli.config.vocabulary import FILE, FORMAT
from scripts.tiny_world.captions import PHRASES, every_wording
from scripts.tiny_world.words import BACKGROUNDS, COLORS, DIRECTIONS, MOTIONS, PATTERNS, SHAPES
from scripts.train_world.checkpoint import read_json
from scripts.train_world.earlier import RECORD
from scripts.train_world.evaluate import table
from scripts.train_world.recipe import STAGES

_FILE = "README.md"
_COLUMNS = ("stage", "steps", "batch", "processes", "device", "seed", "minutes")

_CARD = """---
license: apache-2.0
pipeline_tag: text-to-video
library_name: diffusers
tags: [text-to-video, hunyuan-video, tiny]
---
# adaspa tiny

A text-to-video model small enough to ship with a program: {total:.0f} MB, {frames} frames of {width}x{height} pixels in
{steps} steps. It has the architecture of HunyuanVideo (dual- and single-stream blocks over video and text tokens) and
loads into diffusers' `HunyuanVideoPipeline`, so that whatever works on it works on the large model. It was trained from
nothing for adaspa; no weights, data or prompts of other models went into it.

## Use
```python
import torch
from diffusers import HunyuanVideoPipeline

pipe = HunyuanVideoPipeline.from_pretrained(FOLDER, dtype=torch.float32)
pipe.vae.use_framewise_decoding = False  # the VAE was trained on whole clips; the saved config cannot say so
video = pipe(
    "a red circle moves left on a blue striped background",
    num_frames={frames},
    height={height},
    width={width},
    num_inference_steps={steps},
    output_type="np",
).frames[0]
```
Files are float16; load them as float32 or, where the processor computes in it, bfloat16.

## What it can show
One to three objects of different colours: **{shapes}** in **{colors}**, small, large or neither, that move **left,
right, up, down** (slowly, quickly or neither), **stay still**, **grow**, **shrink**, **rotate** or **bounce**; one may
pass **behind** another or **in front of** it. Backgrounds are **{backgrounds}**,
and **{patterns}**; all but plain and gradient ones may drift.
`vocabulary.json` lists every word and the sizes: {sizes}. Other words mean nothing: the pipeline reads them without
complaint, `adaspa generate` names them.
Guidance is trained in, so that one pass a step is enough and there is no guidance embedding; true classifier-free
guidance with an empty negative prompt works on top of it.

## Data
Clips drawn by a program (`scripts/tiny_world`), with captions composed from these words. A twelfth of all combinations
of shape, colour, motion and background colour was never drawn for training, not even beside another object.

## Results
{results}

## Training
{minutes} minutes in all, each stage from the averaged weights of the one before it:

| stage | steps | batch | processes | device | seed | minutes |
|---|---|---|---|---|---|---|
{stages}

`vae` trains the autoencoder, `decoder` its decoder alone, and `text` lets the text encoders answer questions about the
scenes of captions. The other stages train the transformer and the text encoders by flow matching, with Muon and AdamW,
in bfloat16 autocast, and average the weights exponentially. `scripts/train_world` repeats a stage with `--steps` and
`--batch` as above, up to what the GPUs' own kernels leave to chance.

## Size
{sizes_of_files}

## Licence
Apache-2.0, like adaspa.
"""


def write_card(folder: Path, evaluation: dict[str, Any] | None = None) -> None:
    """Write README.md of an exported folder, with what ``evaluation.json`` says of it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != _FILE)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}
    (folder / _FILE).write_text(model_card(read_json(folder / RECORD), sizes, evaluation))


def model_card(record: dict[str, Any], sizes: dict[str, int], evaluation: dict[str, Any] | None = None) -> str:
    """README.md of a model, from ``training.json``, the sizes of its files and ``evaluation.json``."""
    rows = [row | {"stage": f"`{row['stage']}`"} for row in record["stages"]]
    return _CARD.format(
        total=sum(sizes.values()) / 1e6,
        **record["geometry"],
        steps=evaluation["steps"] if evaluation else 14,
        shapes=", ".join(SHAPES),
        colors=", ".join(COLORS),
        backgrounds=", ".join(BACKGROUNDS),
        patterns=", ".join(PATTERNS),
        sizes=", ".join(f"{low} to {high} {name}" for name, (low, high) in trained_sizes().items()),
        results=_results(evaluation, record["vae"]),
        stages="\n".join(f"| {' | '.join(str(row[column]) for column in _COLUMNS)} |" for row in rows),
        minutes=round(sum(row["minutes"] for row in rows)),
        sizes_of_files="\n".join(f"- `{name}`: {size / 1e6:.2f} MB" for name, size in sizes.items() if size > 100_000),
    )


def _results(evaluation: dict[str, Any] | None, vae: dict[str, Any] | None) -> str:
    lines = ["The held-out captions were not evaluated."]
    if evaluation:
        lines = [
            f"{evaluation['clips']} clips of held-out captions, {evaluation['steps']} steps, judged by program "
            "(`scripts/tiny_world/judge.py`):",
            "",
            table(evaluation),
        ]
    if vae:
        edges = ", ".join(f"{value:.1f}" for value in vae["moving_edges_db"])
        lines += [
            "",
            f"VAE on held-out clips: {vae['psnr_db']} dB PSNR; at moving edges {edges} dB, in the first frame and in "
            "each of four that share a latent frame.",
        ]
    return "\n".join(lines)


def trained_sizes() -> dict[str, tuple[int, int]]:
    """Least and greatest frames, height and width of the last stage."""
    geometries = [size.geometry for size in STAGES["full"].sizes]
    values = {name: [getattr(g, name) for g in geometries] for name in ("frames", "height", "width")}
    return {name: (min(found), max(found)) for name, found in values.items()}


def write_vocabulary(folder: Path) -> None:
    """Write ``vocabulary.json`` into a pipeline's folder."""
    words = {word for caption in every_wording() for word in re.findall(r"[a-z]+", caption.lower())}
    knows = {
        "shapes": [*SHAPES],
        "colors": [*COLORS],
        "backgrounds": [*BACKGROUNDS, *PATTERNS],
        "motions": [PHRASES[motion][0][0] for motion in MOTIONS],
        "sizes and speeds": ["small", "large", "slowly", "quickly"],
        "others": ["behind", "in front of", *(f"drifts {way}" for way in DIRECTIONS)],
    }
    trained = {name: list(ends) for name, ends in trained_sizes().items()}
    content = {"format": FORMAT, "knows": knows, "trained": trained, "words": sorted(words)}
    (folder / FILE).write_text(json.dumps(content, indent=1) + "\n")

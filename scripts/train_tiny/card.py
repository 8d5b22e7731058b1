"""The model card of the exported model, with figures from the training and evaluation records."""

import json
from pathlib import Path
from typing import Any

_CARD = """---
license: apache-2.0
pipeline_tag: text-to-video
library_name: diffusers
tags: [text-to-video, hunyuan-video, tiny]
---
# adaspa tiny

A text-to-video model small enough to ship with a program: {total:.0f} MB, {frames} frames of {width}x{height} pixels in
12 steps. It has the architecture of HunyuanVideo (dual- and single-stream blocks over video and text tokens) and loads
into diffusers' `HunyuanVideoPipeline`, so that whatever works on it works on the large model. It was trained from
nothing for adaspa; no weights, data or prompts of other models went into it.

## Use
```python
import torch
from diffusers import HunyuanVideoPipeline

pipe = HunyuanVideoPipeline.from_pretrained(FOLDER, dtype=torch.float32)
pipe.vae.use_framewise_decoding = False  # the VAE was trained on whole clips; the saved config cannot say so
video = pipe(
    "a red circle moves left on a blue background",
    num_frames={frames},
    height={height},
    width={width},
    num_inference_steps=12,
    output_type="np",
).frames[0]
```
Files are float16; load them as float32 or, where the processor computes in it, bfloat16.

## What it can do
One object, or two in separate halves of the frame: **{shapes}** in **{colors}**,
on a **{backgrounds}** background,
that moves **left, right, up, down**, **stays still**, **grows**, **rotates** or **bounces**.
Several wordings are understood; `vocabulary.json` lists every word and the sizes. Other words mean nothing: the
pipeline reads them without complaint, `adaspa generate` names them. No other sizes and lengths were trained.
Guidance is trained in, so that one pass a step is enough and there is no guidance embedding; true classifier-free
guidance with an empty negative prompt works on top of it.

## What it cannot do
Fast motion leaves ghosts: within four frames the autoencoder blurs what moves, bounces most of all. Where one object
was asked for there are sometimes two. It was trained for minutes, not hours.

## Data
Clips drawn by a program, with captions composed from the words above; {pairs:.0%} show two objects. {held_out}
combinations of shape, colour, background and motion were never drawn for training, not even beside another object.

## Results
{results}

## Training
| stage | steps | batch | minutes |
|---|---|---|---|
{stages}

Seed {seed}, on {device}: flow matching, Muon and AdamW in bfloat16 autocast, exponential average of the
weights, guidance trained in. Recipe and code: `scripts/train_tiny` in the adaspa repository; its defaults repeat this
run, up to what the GPU's own kernels leave to chance.

## Size
{sizes}

## Licence
Apache-2.0, like adaspa.
"""


def model_card(work: Path, stage: str, sizes: dict[str, int]) -> str:
    """README.md of the exported folder; figures that were not recorded in ``work`` are said to be missing."""
    from scripts.clip_judge import BACKGROUNDS, COLORS, SHAPES
    from scripts.train_tiny.captions import held_out_scenes
    from scripts.train_tiny.clips import PAIR_SHARE

    state = _read(work / stage / "state.json")
    return _CARD.format(
        total=sum(sizes.values()) / 1e6,
        **state["geometry"],
        shapes=", ".join(SHAPES),
        colors=", ".join(COLORS),
        backgrounds=", ".join(BACKGROUNDS),
        pairs=PAIR_SHARE,
        held_out=len(held_out_scenes()),
        results=_results(_read(work / stage / "evaluation.json"), _read(work / "vae" / "model" / "metrics.json")),
        stages=_stages(work),
        seed=state["seed"],
        device=f"one {state['device']}",
        sizes="\n".join(f"- `{name}`: {size / 1e6:.2f} MB" for name, size in sizes.items() if size > 100_000),
    )


def _results(evaluation: dict[str, Any], vae: dict[str, Any]) -> str:
    lines = []
    if evaluation:
        lines.append(
            f"{evaluation['clips']} clips of the held-out captions, {evaluation['steps']} steps, judged by program "
            "(`scripts/clip_judge.py`):\n"
        )
        lines += ["| attribute | right |", "|---|---|"]
        lines += [f"| {name} | {share:.1%} |" for name, share in evaluation["accuracy"].items()]
        lines.append("")
    else:
        lines.append("The held-out captions were not evaluated.")
    if vae:
        lines.append(f"VAE on held-out clips: {vae['psnr_db']} dB PSNR.")
    return "\n".join(lines)


def _stages(work: Path) -> str:
    rows = []
    for name in ("vae", "small", "full"):
        state = _read(work / name / "state.json")
        if state:
            rows.append(f"| {name} | {state['step']} | {state['batch']} | {state['seconds'] / 60.0:.1f} |")
        elif name == "vae" and (metrics := _read(work / "vae" / "model" / "metrics.json")):
            rows.append(f"| vae | {metrics['steps']} | {metrics['batch']} | {metrics['minutes']} |")
    return "\n".join(rows)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}

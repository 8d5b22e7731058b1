"""Judges videos of held-out captions that ``adaspa generate`` made, whatever the method.

python -c "from scripts.judge_tiny.captions import held_out_captions as c; print(*c()[3::4], sep='\\n')" > prompts.txt
adaspa generate --prompts prompts.txt --out OUT
python -m scripts.judge_tiny videos OUT
"""

import json
from collections import Counter
from pathlib import Path

import imageio.v2 as imageio
import numpy as np

from scripts.judge_tiny.captions import held_out_scenes, standard_caption
from scripts.judge_tiny.judge import judge_clip


def judge_videos(folder: Path) -> None:
    """Print what is wrong with which video of a folder, and how many are right."""
    reports = sorted(folder.glob("*.report.json"))
    scenes = {standard_caption(scene): scene for scene in held_out_scenes()}
    right: Counter[str] = Counter()
    for path in reports:
        prompt = json.loads(path.read_text(encoding="utf-8"))["prompt"]
        if prompt not in scenes:
            raise SystemExit(f"{path.name}: '{prompt}' is no held-out caption, so what it should show is not known")
        frames = np.stack(imageio.mimread(path.with_name(path.name.replace(".report.json", ".mp4"))))
        verdict = judge_clip(frames)
        hits = verdict.hits(scenes[prompt])
        right.update(name for name, hit in hits.items() if hit)
        if not all(hits.values()):
            print(f"{prompt}: {', '.join(f'{name} {getattr(verdict, name)}' for name in hits if not hits[name])}")
    print(f"{len(reports)} videos; right: {', '.join(f'{name} {right[name]}' for name in right)}")

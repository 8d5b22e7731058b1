"""Contact sheets of drawn clips: ``python -m scripts.tiny_world OUT.png --seed 0 --clips 12``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from scripts.tiny_world.draw import draw, to_uint8
from scripts.tiny_world.plan import extent_of, plan_clips

_LABEL = 18


def sheet(clips: Sequence[np.ndarray], captions: Sequence[str], columns: int = 6) -> Image.Image:
    """One row a clip: its caption and frames spread over its time."""
    height, width = clips[0].shape[1:3]
    image = Image.new("RGB", (columns * width, len(clips) * (height + _LABEL)), "white")
    pen = ImageDraw.Draw(image)
    for row, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        top = row * (height + _LABEL)
        pen.text((4, top + 3), caption, fill="black")
        for column, pick in enumerate(np.linspace(0, len(clip) - 1, columns).round().astype(int)):
            image.paste(Image.fromarray(clip[pick]), (column * width, top + _LABEL))
    return image


def main() -> None:
    """Draw a sheet of training clips."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--height", type=int, default=160)
    parser.add_argument("--width", type=int, default=160)
    options = parser.parse_args()
    plan = plan_clips(options.clips, options.seed, extent_of(options.height, options.width))
    clips, _ = draw(plan, 33, options.height, options.width, "cpu")
    sheet(list(to_uint8(clips).numpy()), plan.captions).save(options.out)


if __name__ == "__main__":
    main()

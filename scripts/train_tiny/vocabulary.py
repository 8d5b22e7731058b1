"""The ``vocabulary.json`` of an exported model: its words and sizes, which ``adaspa_cli.config.vocabulary`` reads."""

import json
import re
from pathlib import Path
from typing import Any

from adaspa_cli.config.vocabulary import FILE, FORMAT
from scripts.clip_judge import BACKGROUNDS, COLORS, MOTIONS, SHAPES
from scripts.train_tiny.captions import PHRASES, every_wording
from scripts.train_tiny.pool import Geometry


def vocabulary(geometry: Geometry) -> dict[str, Any]:
    """Every word of the captions, and what can be asked for by kind."""
    words = {word for caption in every_wording() for word in re.findall(r"[a-z]+", caption.lower())}
    knows = {
        "shapes": [*SHAPES],
        "colors": [*COLORS],
        "backgrounds": [*BACKGROUNDS],
        "motions": [PHRASES[motion][0][0] for motion in MOTIONS],
    }
    sizes = {"frames": geometry.frames, "height": geometry.height, "width": geometry.width}
    trained = {name: [size, size] for name, size in sizes.items()}
    return {"format": FORMAT, "knows": knows, "trained": trained, "words": sorted(words)}


def write_vocabulary(folder: Path, geometry: Geometry) -> None:
    """Write the file into a pipeline's folder."""
    (folder / FILE).write_text(json.dumps(vocabulary(geometry), indent=1) + "\n")

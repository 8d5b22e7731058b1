"""The folder of a mask file's pictures: PNG files, and one page that holds them all."""

from __future__ import annotations

import itertools
from pathlib import Path

from adaspa_cli.report.drawing import png
from adaspa_cli.report.heat import Heat, heat
from adaspa_cli.report.media import data_uri, png_bytes
from adaspa_cli.report.template import render
from adaspa_cli.sampling.outputs import write_text
from adaspa_cli.visual.folder import whole_folder
from adaspa_cli.visual.mask_figures import draw_blocks, draw_heats, heat_size
from adaspa_cli.visual.mask_look import MaskLook
from adaspa_cli.visual.weights import cell_size

PAGE = "index.html"


def write_mask_pictures(seen: MaskLook, out: str) -> Path:
    """Write a new folder in ``out``, named after the file; returns it.

    Raises:
        OutputError: it cannot be written.
    """
    return whole_folder(out, seen.file.path.stem, lambda folder: _fill(seen, folder))


def mask_heats(seen: MaskLook) -> dict[str, list[Heat]]:
    """Density and recall of all layers and heads, by file name: one for each search step and branch."""
    found = {}
    for branch in seen.file.description.branches:
        for step in seen.choice.steps:
            entries = seen.entries(branch, step)
            found[f"heat-step{step}-{branch}"] = [
                heat(f"Density, step {step}, {branch}", [(entry.layer, list(entry.density)) for entry in entries]),
                heat(f"Recall, step {step}, {branch}", [(entry.layer, list(entry.recall)) for entry in entries]),
            ]
    return found


def overlap_heats(seen: MaskLook) -> dict[str, list[Heat]]:
    """IoU of a step's masks with the next step's, of all layers and heads, by file name."""
    return {
        f"overlap-steps{first}-{second}-{branch}": [heat(f"IoU of steps {first} and {second}, {branch}", rows)]
        for (branch, (first, second)), rows in seen.overlaps.items()
    }


def _fill(seen: MaskLook, folder: Path) -> None:
    kept, common = mask_heats(seen), overlap_heats(seen)
    for name, heats in (kept | common).items():
        png(draw_heats(heats), folder / f"{name}.png", heat_size(heats))
    sheets = {}
    for layer in seen.choice.layers:
        for head in seen.choice.heads:
            content = png_bytes(draw_blocks(seen, layer, head))
            (folder / f"blocks-layer{layer}-head{head}.png").write_bytes(content)
            sheets[layer, head] = data_uri("image/png", content)
    joined = [list(itertools.chain.from_iterable(heats.values())) for heats in (kept, common)]
    write_text(folder / PAGE, page(seen, joined[0], joined[1], sheets))


def page(seen: MaskLook, kept: list[Heat], common: list[Heat], sheets: dict[tuple[int, int], str]) -> str:
    """The page as HTML.

    Args:
        kept, common: heat maps of density and recall, and of overlaps.
        sheets: data URIs of the pictures of kept blocks, by layer and head.
    """
    facts = seen.file.description
    return render(
        Path(__file__).parent / "masks.html.j2",
        file=seen.file,
        facts=facts,
        pooled=cell_size(facts.video_blocks, seen.choice.pixels),
        kept=kept,
        common=common,
        sheets=sheets,
    )

"""The folder of mask files' pictures: PNG files, and one page that holds them all."""

from __future__ import annotations

import itertools
from pathlib import Path

from adaspa_cli.files.whole import write_text
from adaspa_cli.report.drawing import png
from adaspa_cli.report.heat import Heat, heat, with_shared_scales
from adaspa_cli.report.media import data_uri, png_bytes
from adaspa_cli.report.template import render
from adaspa_cli.visual.folder import whole_folder
from adaspa_cli.visual.mask_figures import draw_blocks, draw_heats, draw_looks, heat_size
from adaspa_cli.visual.mask_reading import MaskReading

PAGE = "index.html"


def write_mask_pictures(seen: MaskReading, out: str) -> Path:
    """Write a new folder in ``out``, named after the first file; returns it.

    Raises:
        OutputError: it cannot be written.
    """
    return whole_folder(out, seen.files[0].path.stem, lambda folder: _fill(seen, folder))


def mask_heats(seen: MaskReading) -> dict[str, list[Heat]]:
    """Density and recall of all layers and heads, by file name: one for each search step, branch and file."""
    found: dict[str, list[Heat]] = {}
    for branch, step in itertools.product(seen.choice.branches, seen.choice.steps):
        for number in range(len(seen.files)):
            entries = seen.entries(number, branch, step)
            where = _where(seen, f"step {step}", branch, number)
            found[_name(seen, f"heat-step{step}-{branch}", number)] = [
                heat("Density", where, [(entry.layer, list(entry.density)) for entry in entries]),
                heat("Recall", where, [(entry.layer, list(entry.recall)) for entry in entries]),
            ]
    return _same_colours(found)


def step_heats(seen: MaskReading) -> dict[str, list[Heat]]:
    """IoU of a step's masks with the next step's, of all layers and heads, by file name."""
    return _same_colours(
        {
            _name(seen, f"overlap-steps{first}-{second}-{branch}", number): [
                heat("IoU", _where(seen, f"steps {first} and {second}", branch, number), rows)
            ]
            for (number, branch, (first, second)), rows in seen.step_overlaps.items()
        }
    )


def file_heats(seen: MaskReading) -> dict[str, list[Heat]]:
    """IoU of the first file's masks with another one's, of all layers and heads, by file name."""
    return _same_colours(
        {
            f"overlap-files1-{number + 1}-step{step}-{branch}": [
                heat("IoU", f"{_where(seen, f'step {step}', branch)}, files 1 and {number + 1}", rows)
            ]
            for (number, branch, step), rows in seen.file_overlaps.items()
        }
    )


def _same_colours(found: dict[str, list[Heat]]) -> dict[str, list[Heat]]:
    """The maps of all files in the same colours."""
    shared = iter(with_shared_scales(itertools.chain.from_iterable(found.values())))
    return {name: list(itertools.islice(shared, len(heats))) for name, heats in found.items()}


def _where(seen: MaskReading, when: str, branch: str, number: int | None = None) -> str:
    """Step, branch and file, the latter two if there are several."""
    parts = [when, *([branch] if len(seen.choice.branches) > 1 else [])]
    return ", ".join([*parts, f"file {number + 1}"] if number is not None and len(seen.files) > 1 else parts)


def _name(seen: MaskReading, name: str, number: int) -> str:
    return f"{name}-file{number + 1}" if len(seen.files) > 1 else name


def _fill(seen: MaskReading, folder: Path) -> None:
    sections = [mask_heats(seen), step_heats(seen), file_heats(seen)]
    for name, heats in itertools.chain.from_iterable(section.items() for section in sections):
        png(draw_heats(heats), folder / f"{name}.png", heat_size(heats))
    sheets = {}
    for layer, head in itertools.product(seen.choice.layers, seen.choice.heads):
        drawings = {"blocks": draw_blocks(seen, layer, head), "frames": draw_looks(seen, layer, head)}
        contents = {kind: png_bytes(drawing) for kind, drawing in drawings.items()}
        for kind, content in contents.items():
            (folder / f"{kind}-layer{layer}-head{head}.png").write_bytes(content)
        sheets[layer, head] = {kind: data_uri("image/png", content) for kind, content in contents.items()}
    drawn = [list(itertools.chain.from_iterable(section.values())) for section in sections]
    write_text(folder / PAGE, page(seen, drawn, sheets))


def page(seen: MaskReading, drawn: list[list[Heat]], sheets: dict[tuple[int, int], dict[str, str]]) -> str:
    """The page as HTML.

    Args:
        drawn: heat maps of density and recall, of overlaps of steps, and of overlaps of files.
        sheets: data URIs of the pictures of kept ``blocks`` and of what a token looks at in the ``frames``, by layer
            and head.
    """
    kept, steps, files = drawn
    return render(
        Path(__file__).parent / "masks.html.j2",
        files=seen.files,
        cell=seen.choice.cell(seen.files[0].description),
        by_tokens=seen.choice.by_tokens,
        two_orders=len({file.description.layout.order for file in seen.files}) > 1,
        query=seen.choice.query,
        kept=kept,
        step_overlaps=steps,
        file_overlaps=files,
        sheets=sheets,
    )

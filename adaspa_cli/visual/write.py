"""The folder of ``visualize``: PNG files, their data as JSON, and one page with all of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from adaspa_cli.config import Resolved
from adaspa_cli.config.architecture import random_weights_note
from adaspa_cli.config.methods import AdaSpaConfig, SearchingConfig
from adaspa_cli.files.typed_json import from_json
from adaspa_cli.files.videos import write_video
from adaspa_cli.files.whole import write_json, write_text
from adaspa_cli.masks.schedule import sparsity_at
from adaspa_cli.masks.token_order import token_blocks
from adaspa_cli.report.drawing import Drawing, png, svg
from adaspa_cli.report.heat import heats
from adaspa_cli.report.media import data_uri, jpeg
from adaspa_cli.report.schema import Machine, Search
from adaspa_cli.report.template import render
from adaspa_cli.visual import compensation_figures, figures, view
from adaspa_cli.visual.choice import middle
from adaspa_cli.visual.probe import WEIGHTS, HeadPicture, MaskRecord, ProbeResult, mean

PAGE, DATA, VIDEO = "index.html", "data.json", "video.mp4"
_BUDGETS = {
    "row": "the same share in every head",
    "head-adaptive": "head-adaptive",
    "layer": "one budget for all rows and heads of a layer",
}
_HEIGHT = 3.4  # inches of a plot


def write_pictures(result: ProbeResult, resolved: Resolved, folder: Path) -> None:
    """Write everything into an empty folder."""
    found = data(result, resolved)
    first, choice = result.first, result.choice
    if result.frames is not None:
        write_video(folder / VIDEO, result.frames, resolved.config.sampling.fps, found["random_weights"])
    for layer in choice.layers:
        for head in choice.heads:
            steps = {step: first.pictures[layer, head, step] for step in choice.steps}
            left_out = ", ".join(dict.fromkeys(f"{sparsity:.0%}" for sparsity in found["sparsity_by_step"]))
            title = f"layer {layer}, head {head}, {left_out} left out"
            figures.draw_patterns(steps, folder / f"layer{layer}-head{head}.png", title)
    plots = {
        "recall": ("Recall by step", figures.recall_by_step(first.records, choice.layers)),
        "lse": ("LSE by step", figures.lse_by_step(first.records, choice.layers)),
    }
    if compensated := first.compensated:
        plots["mass"] = ("What is seen of the mass", compensation_figures.mass_by_step(compensated, choice.layers))
        plots["error"] = ("Error of the output", compensation_figures.error_by_step(compensated, choice.layers))
    if len(result.videos) > 1:
        plots["videos"] = ("Masks of one video on others", figures.recall_across(found["across"]))
    for name, (_, draw) in plots.items():
        png(figures.one_plot(draw), folder / f"{name}.png", (7.0, _HEIGHT))
    if choice.query is not None:
        _draw_query(result, choice.query, folder)
    write_json(folder / DATA, found)
    drawings = {name: Drawing(title, svg(draw, height=_HEIGHT)) for name, (title, draw) in plots.items()}
    write_text(folder / PAGE, page(result, resolved, found, drawings, folder))


def data(result: ProbeResult, resolved: Resolved) -> dict[str, Any]:
    """The numbers behind the pictures, rounded as in reports."""
    first, choice = result.first, result.choice
    assert first.layout is not None
    method = resolved.config.method.searching
    return {
        "format": 1,
        "kind": "adaspa pictures",
        **result.facts,
        "model": resolved.config.model.model,
        "random_weights": random_weights_note(resolved.config.model),
        "settings": {k: {"value": v, "origin": resolved.origins()[k]} for k, v in resolved.flat().items()},
        "sparsity": method.sparsity,
        "sparsity_by_step": [sparsity_at(first.sparsity, step) for step in choice.steps],
        "block_size": method.block_size,
        "videos": [{"prompt": prompt, "seed": seed} for prompt, seed in result.videos],
        "layout": dataclasses.asdict(first.layout),
        "choice": dataclasses.asdict(choice),
        "masks": [
            {"layer": at[0], "step": at[1], **dataclasses.asdict(first.records[at])} for at in sorted(first.records)
        ],
        "patterns": [
            {
                **dict(zip(("layer", "head", "step"), at, strict=True)),
                "share": round(seen.share, 6),
                "recall": {name: round(value, 6) for name, value in seen.recall.items()},
            }
            for at, seen in sorted(first.pictures.items())
        ],
        "across": across_table(result),
    }


def across_table(result: ProbeResult) -> list[list[float | None]]:
    """Recall of the mask of each video (row) on the weights of each (column), mean over layers and heads.

    Of the reference step. A mask is tried on the videos that come after its own, so the lower half is None, and so is
    a pair whose blocks do not hold the same tokens.
    """
    count = len(result.videos)
    table: list[list[float | None]] = [[None] * count for _ in range(count)]
    for column, found in enumerate(result.across):
        for row, by_layer in found.items():
            table[row][column] = round(mean(list(by_layer.values())), 6)
    return table


def _draw_query(result: ProbeResult, query: tuple[int, int, int], folder: Path) -> None:
    """The asked query token's view by each layer and head that were chosen, at the reference step."""
    layout, size = result.first.layout, result.first.block_size[0]
    assert layout is not None
    frames, block = view.frames_shown(result.frames, layout), view.query_block(layout, size, query)
    for (layer, head, step), picture in result.first.pictures.items():
        if step == result.choice.reference:
            strength = view.token_strength(picture.view[block], layout, size)
            sheet = view.paint(frames, strength, query)
            view.draw_query(sheet, folder / f"query-layer{layer}-head{head}.png")


def page(
    result: ProbeResult, resolved: Resolved, found: dict[str, Any], drawings: dict[str, Drawing], folder: Path
) -> str:
    """The page as HTML; the video is read from ``folder``."""
    first, choice = result.first, result.choice
    assert first.layout is not None
    maps = {
        (layer, head): {step: first.pictures[layer, head, step] for step in choice.steps}
        for layer in choice.layers
        for head in choice.heads
    }
    views = {_view_name(at): at for at in sorted(first.pictures)}
    # A head that looks at few things shows best what the view is for.
    at_reference = {at: seen.recall["block"] for at, seen in first.pictures.items() if at[2] == choice.reference}
    started = max(at_reference, key=at_reference.__getitem__)
    video = folder / VIDEO
    shares = {pattern["step"]: pattern["share"] for pattern in found["patterns"]}
    return render(
        Path(__file__).parent / "page.html.j2",
        found=found,
        chosen_by=_chosen_by(resolved.config.method.searching),
        shares=shares,
        machine=from_json(Machine, found["machine"]).line(),
        maps=maps,
        names=figures.names(next(iter(first.pictures.values()))),
        weights=WEIGHTS,
        figure=figures.pattern_figure,
        summaries=first.policy.compensation.pooled,
        compensation_heats=compensation_figures.compensation_heats(first.compensated) if first.compensated else [],
        picture=figures.map_png,
        drawings=drawings,
        video=data_uri("video/mp4", video.read_bytes()) if result.frames is not None else None,
        frames=[jpeg(frame) for frame in view.frames_shown(result.frames, first.layout)],
        views=list(views),
        started=_view_name(started),
        opened=started[:2],
        heats=heats([_search(at, first.records[at]) for at in sorted(first.records)]),
        view_data=json.dumps(view_data(result, views)),
        script=(Path(__file__).parent / "view.js").read_text(encoding="utf-8"),
    )


def _search(at: tuple[int, int], record: MaskRecord) -> Search:
    return Search(at[0], "cond", 0, at[1], False, tuple(record.density), tuple(record.recall))


def _chosen_by(method: SearchingConfig) -> str:
    """How the blocks of masks are chosen, in words."""
    if not isinstance(method, AdaSpaConfig):
        return _BUDGETS["row"]
    by = ", chosen by output error" if method.scores_blocks else ""
    return f"{_BUDGETS[method.spreading]}{by}"


def _view_name(at: tuple[int, int, int]) -> str:
    return f"layer {at[0]}, head {at[1]}, step {at[2]}"


def _row_pooled(picture: HeadPicture) -> list[float] | None:
    return None if picture.row_pooled is None else [round(value, 4) for value in picture.row_pooled.tolist()]


def view_data(result: ProbeResult, views: dict[str, tuple[int, int, int]]) -> dict[str, Any]:
    """What the script of the page needs, by the names of the views."""
    first, size = result.first, result.first.block_size[0]
    layout = first.layout
    assert layout is not None
    video = layout.video_blocks(size)
    return {
        "grid": [layout.frames, layout.height, layout.width],
        "tokenBlocks": view.packed(token_blocks(layout, size).to(torch.int32)),
        "blocks": layout.blocks(size),
        "video": [video.start, video.stop],
        "query": result.choice.query or middle(layout),
        "style": view.style(),
        "views": {
            name: {
                "blocks": view.packed(first.pictures[at].view),
                "recall": [round(value, 4) for value in first.pictures[at].row_recall.tolist()],
                "pooled": _row_pooled(first.pictures[at]),
            }
            for name, at in views.items()
        },
    }

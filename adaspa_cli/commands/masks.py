"""``adaspa masks``: what is in mask files, whether they are intact, what they have in common, and pictures of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from adaspa_cli.commands import options
from adaspa_cli.commands.command import command
from adaspa_cli.console import Console
from adaspa_cli.errors import MaskFileError
from adaspa_cli.jobs.early import check_readable

if TYPE_CHECKING:
    from adaspa_cli.maskfiles import MaskFile
    from adaspa_cli.visual.mask_choice import MaskChoice

masks_app = typer.Typer(
    help="Inspect mask files written by adaspa search-masks.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@masks_app.command()
@command(panels=False)
def info(
    *,
    file: Annotated[Path, typer.Argument(help="A mask file.", metavar="FILE")],
    console: Console,
) -> None:
    """Show what a mask file holds: model, size, settings, and density and recall by search step.

    Reads and checks only the header; `adaspa masks verify` checks everything.
    """
    from adaspa_cli.maskfiles.header import Described

    masks = Described.open(file)
    content = masks.description.as_json()
    # Which the file itself leaves out where they are what they were in its first version.
    content["layout"] = dataclasses.asdict(masks.description.layout)
    content["method"] = dataclasses.asdict(masks.description.method)
    for entry in content["entries"]:
        del entry["digests"]
    data = {"file": str(file), "bytes": file.expanduser().stat().st_size, "checksum": masks.checksum, **content}
    console.result(data, Group(_facts(data), Text(""), _steps(data)))


@masks_app.command()
@command(panels=False)
def verify(
    *,
    files: Annotated[list[Path], typer.Argument(help="Mask files.", metavar="FILE...")],
    console: Console,
) -> None:
    """Check every byte of mask files. Exit code 1 if one is corrupt."""
    check_readable(*files)
    found = [{"file": str(file), **_verified(file)} for file in files]
    lines = [
        Text(f"{row['file']}: whole" if row["whole"] else row["reason"], no_wrap=True, overflow="ignore")
        for row in found
    ]
    console.result(found, Group(*lines))
    if not all(row["whole"] for row in found):
        raise typer.Exit(1)


@masks_app.command()
@command(panels=False)
def compare(
    *,
    first: Annotated[Path, typer.Argument(help="A mask file.", metavar="FILE")],
    second: Annotated[
        Path, typer.Argument(help="A second mask file, or the same one to compare its steps.", metavar="FILE")
    ],
    steps: Annotated[
        str | None,
        typer.Option("--steps", metavar="A,B", help="Compare step A of the first file with step B of the second."),
    ] = None,
    heads: Annotated[bool, typer.Option("--heads", help="Show one line per head instead of one per layer.")] = False,
    console: Console,
) -> None:
    """Compare masks: overlap (IoU of the kept blocks, text left out) and recall on each other's attention.

    Recall on each other's attention needs block sums: adaspa search-masks --keep-sums.
    """
    from adaspa_cli.config.load import parse_steps
    from adaspa_cli.maskfiles.header import Described
    from adaspa_cli.maskfiles.pairing import paired

    pair = None if steps is None else parse_steps(steps)
    if pair is not None and len(pair) != 2:
        raise MaskFileError(f"--steps takes two steps, got '{steps}'", hint="--steps 10,30")
    chosen = None if pair is None else (pair[0], pair[1])
    paired(Described.open(first), Described.open(second), chosen)

    from adaspa_cli.maskfiles import MaskFile
    from adaspa_cli.maskfiles.compare import compare as overlaps

    one, other = MaskFile.open(first), MaskFile.open(second)
    found = overlaps(one, other, chosen)
    order, theirs = (file.description.layout.order for file in (one, other))
    if order != theirs:
        console.note(f"token orders are {order} and {theirs}: IoU counts pairs of tokens instead of blocks")
    rows = [_row(overlap) for overlap in found]
    console.result({"files": [str(first), str(second)], "masks": rows}, _overlap_table(rows, heads))


@masks_app.command()
@command(panels=False, interrupted="interrupted; nothing was written")
def plot(
    *,
    files: Annotated[
        list[Path], typer.Argument(help="Mask files; those after the first are compared with it.", metavar="FILE...")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder in which a new folder is created.")] = Path(
        "pictures"
    ),
    at_layers: Annotated[str | None, options.at_option("layers", "0,4,7", "first, middle, last")] = None,
    at_heads: Annotated[str | None, options.at_option("heads", "0,2", "first, middle")] = None,
    steps: Annotated[
        str | None,
        typer.Option("--steps", metavar="STEPS", help="Search steps, for example 10,30. (default: those of all files)"),
    ] = None,
    pixels: Annotated[
        int,
        typer.Option("--pixels", min=8, max=4096, help="Maximum number of points along each side of a block picture."),
    ] = 512,
    query: Annotated[
        str | None,
        typer.Option(
            "--query",
            metavar="FRAME,Y,X",
            help="Query token whose kept tokens are drawn over the frames. (default: the middle of the video)",
        ),
    ] = None,
    console: Console,
) -> None:
    """Draw mask files: density, recall and overlap (IoU) of steps and files by layer and head, the kept blocks, and the
    tokens that one token looks at in the frames.

    Writes PNG files and one offline page into a new folder.

    Example: adaspa masks plot masks.safetensors --at-layers 0,4 --at-heads 0,1
    """
    from adaspa_cli.commands.visualize import parse_numbers, parse_query
    from adaspa_cli.files.folders import check_folder
    from adaspa_cli.maskfiles.header import Described
    from adaspa_cli.visual.mask_choice import MaskChoice

    flags = {"--at-layers": at_layers, "--at-heads": at_heads, "--steps": steps}
    layers, heads, chosen = (parse_numbers(flag, text) for flag, text in flags.items())
    token = parse_query(query)
    choice = MaskChoice.of([Described.open(file) for file in files], layers, heads, chosen, pixels, token)
    check_folder(str(out))

    from adaspa_cli.maskfiles import MaskFile

    folder = _plotted(console, [MaskFile.open(file) for file in files], choice, str(out))
    shown = str(folder / "index.html")
    made = sorted(str(path) for path in folder.iterdir())
    console.result({"page": shown, "files": made}, Text(shown, no_wrap=True, overflow="ignore"))


def _plotted(console: Console, files: list[MaskFile], choice: MaskChoice, out: str) -> Path:
    from adaspa_cli.visual.mask_plot import write_mask_pictures
    from adaspa_cli.visual.mask_reading import masks_to_read, read_masks

    with console.progress() as progress:
        task = progress.add_task("masks", total=len(masks_to_read(files, choice)), phase="reading")
        seen = read_masks(files, choice, lambda _place: progress.advance(task))
    return write_mask_pictures(seen, out)


def _verified(file: Path) -> dict[str, Any]:
    from adaspa_cli.maskfiles import MaskFile

    try:
        for _ in MaskFile.open(file).verify():
            pass
    except MaskFileError as error:
        return {"whole": False, "reason": error.message}
    return {"whole": True, "reason": None}


def _facts(data: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    layout, method, model = data["layout"], data["method"], data["model"]
    ranked = "none: one sparsity" if data["ranked"] is None else f"{data['ranked']} blocks of a row"
    lines = {
        "file": f"{data['file']} ({data['bytes'] / 1e6:.2f} MB)",
        "model": f"{model['name']} ({model['pipeline']}, transformer config {model['transformer'][:12]})",
        "masks of": f"{data['layers']} layers, {data['heads']} heads, {', '.join(data['branches'])}",
        "latent tokens": f"{layout['frames']} x {layout['height']} x {layout['width']}, text {layout['text_position']}",
        "token order": layout["order"],
        "method": f"{method['algorithm']}, sparsity {method['sparsity']:g}, blocks of {data['block_size']}, "
        f"head-adaptive: {'yes' if method['head_adaptive'] else 'no'}",
        "chosen by": method["selection"] + (", one budget for a layer" if method["layer_budget"] else ""),
        "searched": f"at steps {', '.join(map(str, data['search_steps']))} (of 0 to {data['steps'] - 1}), "
        f"prompts: {len(data['prompts'])}, seeds: {', '.join(map(str, data['seeds']))}",
        "ranking": ranked,
        "block sums": "kept" if data["keeps_sums"] else "not kept",
        "checksum": data["checksum"],
    }
    for number, prompt in enumerate(data["prompts"][:5]):
        lines["prompt" if number == 0 else " " * number] = prompt
    if len(data["prompts"]) > 5:
        lines["..."] = f"{len(data['prompts']) - 5} more (--json)"
    for name, value in lines.items():
        table.add_row(Text(name), Text(value, overflow="fold"))
    return table


def _steps(data: dict[str, Any]) -> Table:
    """A line of means per search step and branch."""
    table = Table(box=None, pad_edge=False)
    for title in ("step", "branch", "density", "mean recall", "lowest recall", "in layer", "head"):
        table.add_column(title, justify="right")
    for step in data["search_steps"]:
        for branch in data["branches"]:
            entries = [e for e in data["entries"] if (e["step"], e["branch"]) == (step, branch)]
            lowest, layer, head = min((r, e["layer"], h) for e in entries for h, r in enumerate(e["recall"]))
            means = (_mean([x for e in entries for x in e[key]]) for key in ("density", "recall"))
            shares = (f"{value:.1%}" for value in (*means, lowest))
            table.add_row(str(step), branch, *shares, str(layer), str(head))
    return table


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _row(overlap: Any) -> dict[str, Any]:
    """An :class:`~adaspa_cli.maskfiles.compare.Overlap` in plain types."""
    mutual = [None if recall is None else _rounded(recall) for recall in overlap.mutual]
    return {
        "layer": overlap.layer,
        "branch": overlap.branch,
        "steps": list(overlap.steps),
        "iou": _rounded(overlap.iou),
        "recall": [_rounded(recall) for recall in overlap.recalls],
        "mutual_recall": {"first_on_second": mutual[0], "second_on_first": mutual[1]},
    }


def _rounded(values: Any) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


def _overlap_table(rows: list[dict[str, Any]], heads: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    titles = ["layer", "branch", "steps", *(["head"] if heads else [])]
    for title in (*titles, "IoU", "recall 1", "recall 2", "1 on 2", "2 on 1"):
        table.add_column(title, justify="right")
    for row in rows:
        mutual = row["mutual_recall"]
        columns = [row["iou"], *row["recall"], mutual["first_on_second"], mutual["second_on_first"]]
        place = [str(row["layer"]), row["branch"], "/".join(map(str, row["steps"]))]
        for head in range(len(row["iou"])) if heads else [None]:
            values = ["" if c is None else f"{_mean(c) if head is None else c[head]:.1%}" for c in columns]
            table.add_row(*place, *([] if head is None else [str(head)]), *values)
    return table

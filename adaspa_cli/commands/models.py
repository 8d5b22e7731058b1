"""``adaspa models``: the models, with their sizes and estimated memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from adaspa_cli.commands.command import command
from adaspa_cli.commands.completion import among
from adaspa_cli.config.presets import preset_names
from adaspa_cli.console import Console

if TYPE_CHECKING:
    from adaspa_cli.config.catalogue import Entry
    from adaspa_cli.models.memory import Memory

_UNKNOWN = "not stated"
_NOTE = (
    "disk: parameters x 2 bytes; memory: estimated peak of denoising with the default method, without decoding, for "
    "--offload none, model and group; of other settings: generate --plan; gated: not verified"
)


@command(panels=False, interrupted="interrupted")
def models(
    *,
    name: Annotated[
        str | None,
        typer.Argument(
            help="Show this model in detail.", show_default=False, autocompletion=among(preset_names("models"))
        ),
    ] = None,
    console: Console,
) -> None:
    """List the models that --model knows by name, with their sizes. Downloads nothing.

    Example: adaspa models hunyuan
    """
    from adaspa_cli.config.catalogue import catalogue, entry_of
    from adaspa_cli.models.memory import memory_by_offload

    if name is not None:
        entry = entry_of(name)
        _show_one(console, entry, memory_by_offload(name))
        return
    entries = [(entry, memory_by_offload(entry.name)) for entry in catalogue()]
    data = [_as_json(entry, memory) for entry, memory in entries]
    console.result(data, Group(_table(entries), Text(_NOTE)))


def _as_json(entry: Entry, memory: Mapping[str, Memory]) -> dict[str, Any]:
    suffix = {offload: "" if offload == "none" else f"_offload_{offload}" for offload in memory}
    return entry.as_json() | {
        f"estimated_memory_bytes{suffix[offload]}": held.total for offload, held in memory.items()
    }


def _table(entries: Sequence[tuple[Entry, Mapping[str, Memory]]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("model", "pipeline", "checkpoint"):
        table.add_column(title, overflow="fold")
    for title in ("disk", "tokens", "layers x heads", "memory: none", "model", "group"):
        table.add_column(title, justify="right")
    for title in ("licence", "gated"):
        table.add_column(title, overflow="fold")
    for entry, memory in entries:
        card = entry.card
        table.add_row(
            *(entry.name, entry.pipeline.removesuffix("Pipeline"), entry.checkpoint),
            *(shown_bytes(entry.disk), f"{entry.tokens:,}", f"{entry.layers} x {entry.heads}"),
            *(shown_bytes(held.total) for held in memory.values()),
            *(_UNKNOWN if card is None else card.licence, _gated(entry)),
        )
    return table


def _show_one(console: Console, entry: Entry, memory: Mapping[str, Memory]) -> None:
    from adaspa_cli.config.catalogue import vocabulary

    height, width, frames = entry.size
    parts = {} if entry.card is None else entry.card.billions
    lines = {
        "model": entry.name,
        "pipeline": entry.pipeline,
        "checkpoint": entry.checkpoint,
        "licence": _UNKNOWN if entry.card is None else entry.card.licence,
        "licence stated in": _UNKNOWN if entry.card is None else entry.card.licence_note,
        "gated": _gated(entry),
        "makes a video from": entry.takes,
        "default video": f"{height} x {width} pixels, {frames} frames, {entry.steps} steps",
        "tokens": f"{entry.tokens:,} ({' x '.join(map(str, entry.grid))})",
        "attention": f"{entry.layers} layers of {entry.heads} heads of {entry.head_dim}",
        "parameters": ", ".join(f"{part} {_count(number * 1e9)}" for part, number in parts.items()) or _UNKNOWN,
        "size on disk": shown_bytes(entry.disk),
        "GPU memory, estimated": shown_bytes(memory["none"].total),
        "with --offload model": shown_bytes(memory["model"].total),
        "with --offload group": shown_bytes(memory["group"].total),
    }
    data, known = _as_json(entry, memory), vocabulary(entry)
    if known is not None:
        data |= {"knows": known.knows, "trained": known.trained}
        lines |= {f"knows {kind}": ", ".join(words) for kind, words in known.knows.items()}
        lines |= {
            f"trained on {key}": str(low) if low == high else f"{low} to {high}"
            for key, (low, high) in known.trained.items()
        }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for key, value in lines.items():
        table.add_row(Text(key), Text(value))
    console.result(data, Group(table, Text(_NOTE)))


def _gated(entry: Entry) -> str:
    return _UNKNOWN if entry.card is None else "yes" if entry.card.gated else "no"


def shown_bytes(count: int | None) -> str:
    """For people, in powers of ten."""
    if count is None:
        return _UNKNOWN
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _count(number: float) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 / 10 else f"{number / 1e6:.1f} million"

"""``adaspa doctor``: what this machine and its installation can do, and how to fix what they cannot."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from adaspa_cli.commands import options
from adaspa_cli.commands.command import command
from adaspa_cli.commands.settings import Given
from adaspa_cli.console import Console

if TYPE_CHECKING:
    from adaspa_cli.doctor.judge import Finding

_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


@command(
    options.MODEL.but(text="Also check whether this model can run here.", default=None),
    options.DEVICE,
    options.ATTENTION_BACKEND,
    options.LINEAR,
    options.OUT,
    panels=False,
    interrupted="interrupted",
)
def doctor(*, given: Given, console: Console) -> None:
    """Check the GPU, kernels, libraries, disk and models, and say how to fix what is wrong.

    Exit code 1 if something is broken or a flag asks for something impossible here. Downloads nothing.

    Example: adaspa doctor --model hunyuan --linear fp8
    """
    from adaspa_cli.config.catalogue import entry_of
    from adaspa_cli.config.load import check_values
    from adaspa_cli.doctor.facts import Asked
    from adaspa_cli.doctor.judge import judge
    from adaspa_cli.doctor.look import look, model_facts
    from adaspa_cli.files.typed_json import to_json

    flags = check_values(given.flags, "the flags")
    entry = entry_of(flags["model"]) if "model" in flags else None
    asked = Asked(
        flags.get("device"),
        flags.get("attention_backend"),
        flags.get("linear"),
        None if entry is None else model_facts(entry, flags.get("linear")),
    )
    console.note("checking libraries and kernels ...")
    facts = look(flags.get("out", "videos"), flags.get("device", "auto"))
    found = judge(facts, asked)
    problems = sum(finding.status == "problem" for finding in found)
    console.result(
        {"problems": problems, "findings": to_json(found), "facts": to_json(facts)},
        Group(*_rendered(found), Text(_verdict(problems))),
    )
    if problems:
        raise typer.Exit(1)


def _rendered(found: list[Finding]) -> list[RenderableType]:
    """A table for each topic."""
    shown: list[RenderableType] = []
    for topic, group in groupby(found, key=lambda finding: finding.topic):
        table = Table(box=None, pad_edge=False, show_header=False, title=topic, title_justify="left")
        for ratio in (None, None, 1):
            table.add_column(overflow="fold", ratio=ratio)
        for finding in group:
            table.add_row(Text(finding.status, _STYLES[finding.status]), Text(finding.name), Text(finding.text))
            if finding.mend is not None:
                table.add_row("", "", Text(f"try: {finding.mend}"))
        shown += [table, Text("")]
    return shown


def _verdict(problems: int) -> str:
    if not problems:
        return "nothing is wrong"
    return "1 problem" if problems == 1 else f"{problems} problems"

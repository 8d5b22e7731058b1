"""The command line: registers the commands, imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

import typer

from adaspa_cli.commands.bench import bench
from adaspa_cli.commands.generate import generate
from adaspa_cli.commands.masks import masks_app
from adaspa_cli.commands.search_masks import search_masks
from adaspa_cli.commands.visualize import visualize
from adaspa_cli.version import __version__

app = typer.Typer(
    name="adaspa",
    help="Faster videos from diffusion transformers: block-sparse attention, searched exactly, online.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(bench)
app.command()(search_masks)
app.add_typer(masks_app, name="masks")
app.command()(visualize)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"adaspa {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options that come before a command."""


def main() -> None:
    """Entry point of the ``adaspa`` command."""
    app()

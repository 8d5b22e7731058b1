"""The command line: registers the commands, imports nothing heavy."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any

import typer

from adaspa_cli.commands.bench import bench
from adaspa_cli.commands.completion import prepare_completion
from adaspa_cli.commands.doctor import doctor
from adaspa_cli.commands.gallery import gallery
from adaspa_cli.commands.generate import generate
from adaspa_cli.commands.masks import masks_app
from adaspa_cli.commands.models import models
from adaspa_cli.commands.search_masks import search_masks
from adaspa_cli.commands.ui import ui
from adaspa_cli.commands.visualize import visualize
from adaspa_cli.console import Console, prepare_streams
from adaspa_cli.errors import UsageError
from adaspa_cli.version import __version__

NAME = "adaspa"  # also where it runs as `python -m adaspa_cli`

app = typer.Typer(
    name=NAME,
    help="Faster videos from diffusion transformers, through block-sparse attention with an exact online mask search.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(bench)
app.command()(search_masks)
app.add_typer(masks_app, name="masks")
app.command()(visualize)
app.command()(gallery)
app.command()(models)
app.command()(doctor)
app.command()(ui)


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


def main() -> int:
    """Run the command of ``sys.argv``, and say in one line what is wrong with its arguments; returns the exit code."""
    prepare_streams()
    prepare_completion()
    try:
        return app(prog_name=NAME, standalone_mode=False) or 0
    except typer.Abort:
        return 1
    except Exception as error:
        if not hasattr(error, "format_message"):  # what Typer raises for wrong arguments: not a public class
            raise
        return _refuse(error)


def _refuse(error: Any) -> int:
    """Say what is wrong with the arguments, in the form of all errors."""
    if type(error).__name__ != "NoArgsIsHelpError":  # the help is shown then
        context = getattr(error, "ctx", None)
        path = context.command_path if context else NAME
        text = " ".join(error.format_message().split()).rstrip(".")
        setting = _setting(context, text)
        if setting is not None:
            text = text.partition(" (")[0]  # without options that are spelt alike
        Console(as_json="--json" in sys.argv).error(UsageError(text, hint=_way_out(path, text, setting)))
    return UsageError.exit_code


def _setting(context: Any, text: str) -> str | None:
    """The setting of a run that an unknown option names, in a command that takes it by ``--set``."""
    from adaspa_cli.config.flat import keys_of
    from adaspa_cli.config.mask_file import MaskFileConfig
    from adaspa_cli.config.schema import GenerateConfig, OutputConfig

    found = re.match(r"No such option: --([a-z0-9-]+)", text)
    if found is None or context is None or not any("--set" in option.opts for option in context.command.params):
        return None
    key, no_use = found[1].replace("-", "_"), set(keys_of(OutputConfig))
    no_use |= {"prompt", "prompts"} if context.info_name == "bench" else {*keys_of(MaskFileConfig), "cache", "merge"}
    return key if key in keys_of(GenerateConfig) and key not in no_use else None


def _way_out(path: str, text: str, setting: str | None) -> str:
    """What to try next: the help; or the flag of a prompt or of a setting that was given in another way."""
    if path == f"{NAME} generate" and "unexpected extra argument" in text:
        return f'{path} --prompt "..."; a prompt has a flag, and stands in quotation marks'
    return f"{path} --help" if setting is None else f"{path} --set {setting}=VALUE"

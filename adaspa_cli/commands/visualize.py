"""``adaspa visualize``: pictures of a running model's attention, and of what masks keep of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from adaspa_cli.commands import options
from adaspa_cli.commands.command import command
from adaspa_cli.commands.early import say_early
from adaspa_cli.commands.settings import Given
from adaspa_cli.console import Console
from adaspa_cli.errors import ConfigError
from adaspa_cli.jobs.early import check_early

if TYPE_CHECKING:
    from adaspa_cli.config import GenerateConfig, Resolved
    from adaspa_cli.visual.choice import ProbeRequest

_LOOK = "What to look at"


@command(
    options.PROMPT.but(
        text="What the video shows. Repeatable: the first prompt is drawn, and its masks are tested on the others."
    ),
    options.PROMPTS,
    options.IMAGE,
    options.LAST_IMAGE,
    options.SEED,
    options.METHOD_NAME.but(
        text="Method whose masks are drawn: adaspa, one of its ablations, or adaspa-plus.", panel=_LOOK
    ),
    options.SPARSITY.but(text="Share that every pattern leaves out, or shares by step.", panel=_LOOK),
    options.MODEL,
    options.DEVICE,
    options.STEPS.but(panel=options.MACHINE),
    options.SET.but(text="Any other setting of adaspa generate, for example height=128. Repeatable."),
    options.CONFIG.but(panel=options.MACHINE),
    interrupted="interrupted; nothing was written",
)
def visualize(
    *,
    given: Given,
    at_layers: Annotated[str | None, options.at_option("layers", "0,4,7", "first, middle, last", _LOOK)] = None,
    at_heads: Annotated[str | None, options.at_option("heads", "0,2", "first, middle", _LOOK)] = None,
    at_steps: Annotated[
        str | None,
        typer.Option(
            "--at-steps",
            rich_help_panel=_LOOK,
            metavar="STEPS",
            help="Denoising steps, numbered from 0, for example 0,2,13, or all. (default: first, search steps, last)",
        ),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(
            "--query",
            rich_help_panel=_LOOK,
            metavar="FRAME,Y,X",
            help="Query token, counted from 0, whose kept blocks are drawn over the frames.",
        ),
    ] = None,
    pixels: Annotated[
        int,
        typer.Option(
            "--pixels", rich_help_panel=_LOOK, min=8, max=1024, help="Points along each side of a weight map."
        ),
    ] = 256,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", rich_help_panel=options.OUTPUT, help="Folder in which a new folder is created."),
    ] = Path("pictures"),
    console: Console,
) -> None:
    """Draw where attention looks: weight maps, patterns, and masks over the video frames.

    Example: adaspa visualize --prompt "a red circle moves left on a blue background" --query 4,8,8
    """
    from adaspa_cli.distributed.refuse import check_alone
    from adaspa_cli.visual.choice import ProbeRequest

    resolved = given.resolve(out=str(out))
    _check_method(resolved)
    numbers = parse_numbers("--at-layers", at_layers), parse_numbers("--at-heads", at_heads)
    chosen = _steps(at_steps, resolved)
    request = ProbeRequest(*numbers, chosen, _reference(chosen, resolved), pixels, parse_query(query))
    check_alone(resolved.config, "visualize")
    prompts = check_early(console.note, resolved, str(out))
    _check_request(resolved.config, request)
    say_early(console, given, resolved, prompts)
    console.note("starting ...")
    _run(console, resolved, request, prompts)


def _check_request(config: GenerateConfig, request: ProbeRequest) -> None:
    """Refuse what the model or the video does not have, such as a layer or a query, where that is known already."""
    from adaspa_cli.attention.layout import TokenLayout
    from adaspa_cli.config.architecture import known_architecture
    from adaspa_cli.visual.choice import check_grid, check_transformers

    model = known_architecture(config.model)
    if model is not None:
        check_transformers(len(model.transformers))
    if model is not None and model.heads is not None:
        without_text = TokenLayout(*model.video_grid(config.sampling), 0, "last")
        check_grid(without_text, request.choose(model.layers, model.heads), config.method.searching.block_size)


def _run(console: Console, resolved: Resolved, request: ProbeRequest, prompts: list[str]) -> None:
    from adaspa_cli.commands.progress import ProgressObserver
    from adaspa_cli.visual.run import visualize

    with console.progress() as progress:
        folder = visualize(resolved, request, ProgressObserver(console, progress), prompts)
    files = sorted(str(path) for path in folder.iterdir())
    shown = str(folder / "index.html")
    console.result({"page": shown, "files": files}, Text(shown, no_wrap=True, overflow="ignore"))


def _check_method(resolved: Resolved) -> None:
    """Refuse methods whose masks are not those that are drawn, and what leaves calls or steps out."""
    method = resolved.config.method
    if method.algorithm.name != "adaspa":
        raise ConfigError(f"visualize draws the masks of adaspa, not of {method.method}", hint="--method adaspa-plus")
    for key, name in (("cache", method.cache.name), ("merge", method.merge.name)):
        if name != "none":
            raise ConfigError(f"visualize looks at dense attention, without {key} '{name}'")
    if method.mask_file.masks is not None:
        raise ConfigError(
            "visualize searches the masks that it shows", hint="use adaspa masks plot for a file, or drop masks"
        )
    if resolved.config.sampling.steps_per_phase is not None:
        raise ConfigError("visualize computes every step", hint="drop steps_per_phase")


def parse_numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    """Read ``0,4,7``: ascending, without repetitions; None if the flag was not given.

    Raises:
        ConfigError: it is something else.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"{flag} takes comma-separated whole numbers from 0, got '{text}'", hint=f"{flag} 0,4,7")
    return tuple(sorted({int(part) for part in parts}))


def _steps(text: str | None, resolved: Resolved) -> tuple[int, ...]:
    count = resolved.config.sampling.steps
    if text == "all":
        return tuple(range(count))
    chosen = parse_numbers("--at-steps", text)
    if chosen is None:
        return tuple(sorted({0, *resolved.config.method.searching.schedule(count), count - 1}))
    if chosen[-1] >= count:
        raise ConfigError(f"there is no step {chosen[-1]}", hint=f"steps are 0 to {count - 1}")
    return chosen


def _reference(chosen: tuple[int, ...], resolved: Resolved) -> int:
    """The step whose masks are tried on the others: the first with a search, if there is one among them."""
    search = resolved.config.method.searching.schedule(resolved.config.sampling.steps)[0]
    return next((step for step in chosen if step >= search), chosen[-1])


def parse_query(text: str | None) -> tuple[int, int, int] | None:
    """Read ``4,8,8``: frame, row and column of a token; None if the flag was not given.

    Raises:
        ConfigError: it is something else.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"--query takes FRAME,Y,X in tokens from 0, got '{text}'", hint="--query 4,8,8")
    frame, row, column = map(int, parts)
    return frame, row, column

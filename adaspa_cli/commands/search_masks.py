"""``adaspa search-masks``: masks of a whole model, searched once and stored in a file."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from adaspa_cli.commands import options
from adaspa_cli.commands.command import command
from adaspa_cli.commands.early import say_early
from adaspa_cli.commands.settings import Given
from adaspa_cli.commands.together import Member, member, started_by_torchrun
from adaspa_cli.console import Console
from adaspa_cli.distributed.launch import launch
from adaspa_cli.jobs.early import check_early

if TYPE_CHECKING:
    from adaspa_cli.config import Resolved
    from adaspa_cli.config.search_masks import SearchOptions
    from adaspa_cli.jobs.shard import Shard

_INTERRUPTED = "interrupted; no mask file was written, and --resume continues from there"


@command(
    options.PROMPT,
    options.PROMPTS,
    options.IMAGE,
    options.LAST_IMAGE,
    options.SEED,
    options.METHOD_NAME.but(text="Method to search with: adaspa, one of its ablations, or frame-region."),
    options.SPARSITY,
    options.SEARCH_STEPS,
    options.SHARE_CFG_MASKS.but(text="Search only the conditional branch of guidance."),
    options.MODEL,
    options.WEIGHTS,
    options.LORA,
    options.LORA_HIGH,
    options.LORA_LOW,
    options.WEIGHTS_DTYPE,
    options.TRANSFORMER,
    options.STEPS.but(text="Denoising steps of the whole run."),
    options.HEIGHT,
    options.WIDTH,
    options.FRAMES,
    options.DEVICE,
    options.RANDOM_WEIGHTS.but(text="Build the real architecture with random weights, to measure times and sizes."),
    options.LAYERS,
    options.LINEAR,
    options.COMPILE,
    options.OFFLOAD,
    options.GPUS,
    options.SET,
    options.CONFIG,
    panels=False,
    interrupted=_INTERRUPTED,
)
def search_masks(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Mask file to write, for example masks.safetensors.")],
    given: Given,
    first_step_only: Annotated[
        bool, typer.Option("--first-step-only", help="Search only at the first search step, then stop.")
    ] = False,
    keep_ranking: Annotated[
        float | None,
        typer.Option(
            "--keep-ranking",
            metavar="DENSITY",
            help="Store the ranking of each row's blocks up to this density, for other sparsities. Needs more space.",
        ),
    ] = None,
    keep_sums: Annotated[
        bool,
        typer.Option("--keep-sums", help="Store the block sums too, for adaspa masks compare. Needs much more space."),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an unfinished search; leave a finished one alone.")
    ] = False,
    shard: Annotated[
        str | None, options.shard_option("videos", "The last process to end writes the file. Implies --resume.")
    ] = None,
    console: Console,
) -> None:
    """Search masks and write them to a file, for adaspa generate --masks FILE.

    Averages over several prompts and seeds. Runs each video only up to the last search step.

    Example: adaspa search-masks --prompt "a red circle moves left on a blue background" --out masks.safetensors
    """
    from adaspa_cli.config.search_masks import SearchOptions
    from adaspa_cli.distributed.refuse import check_search

    out, share = out.expanduser(), options.parse_shard(shard)
    resume = resume or share is not None
    searched = SearchOptions(out, keep_ranking, keep_sums, first_step_only, resume)
    with member(console, None if share else started_by_torchrun(), _INTERRUPTED) as own:
        resolved = given.resolve()
        searched.check(resolved.config.method)
        check_search(resolved.config, own.processes(resolved.config.parallel), shared=share is not None)
        if not own.leads:
            _follow(own, resolved, searched)
            return
        launches = own.launches(resolved.config.parallel)
        said = console.muted() if launches else console
        prompts = check_early(said.note, resolved, str(out.parent), may_be_complete=resume)
        say_early(said, given, resolved, prompts)
        if launches:
            raise typer.Exit(launch(resolved.config.parallel.gpus, sys.argv[1:], resolved.config.model.device))
        console.note("starting ...")
        _run(own, resolved, searched, prompts, share)


def _follow(own: Member, resolved: Resolved, searched: SearchOptions) -> None:
    from adaspa_cli import interrupts
    from adaspa_cli.jobs.search_masks import follow_search

    interrupts.unwind()
    with own.world(resolved.config.model.device, resolved.config.parallel) as world:
        follow_search(resolved, searched, world)


def _run(own: Member, resolved: Resolved, searched: SearchOptions, prompts: list[str], shard: Shard | None) -> None:
    from adaspa_cli.commands.progress import SearchProgress
    from adaspa_cli.jobs.search_masks import search_share
    from adaspa_cli.jobs.shard import take_gpu
    from adaspa_cli.models.loading import choose_device
    from adaspa_cli.sampling.memory import peak_memory

    console, config = own.console, resolved.config
    take_gpu(shard, config.model.device)
    begin = time.perf_counter()
    with console.progress() as progress, own.world(config.model.device, config.parallel) as world:
        masks = search_share(resolved, searched, prompts, SearchProgress(console, progress), shard, world)
    data: dict[str, Any]
    if masks is None:
        data = {"file": None, "shard": str(shard)}
        console.result(data, f"shard {shard} is done; the last process to end writes {searched.out}")
        return
    facts = masks.description
    recalls = [value for entry in facts.entries for value in entry.recall]
    densities = [value for entry in facts.entries for value in entry.density]
    data = {
        "file": str(searched.out),
        "bytes": searched.out.stat().st_size,
        "checksum": masks.checksum,
        "search_steps": list(facts.search_steps),
        "videos": len(facts.prompts) * len(facts.seeds),
        "density": sum(densities) / len(densities),
        "recall": sum(recalls) / len(recalls),
        "seconds": time.perf_counter() - begin,  # loading and writing included
        "peak_memory": peak_memory(choose_device(config.model.device)),
    }
    line = (
        f"{data['bytes'] / 1e6:.2f} MB: {facts.layers} layers, {facts.heads} heads, steps "
        f"{', '.join(map(str, facts.search_steps))} (of 0 to {facts.steps - 1}), density {data['density']:.1%}, "
        f"mean recall {data['recall']:.1%}"
    )
    console.result(data, Group(Text(str(searched.out), no_wrap=True, overflow="ignore"), Text(line)))

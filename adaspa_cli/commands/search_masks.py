"""``adaspa search-masks``: masks of a whole model, searched once and kept in a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from adaspa_cli.commands.guard import guard
from adaspa_cli.commands.settings import parse_settings
from adaspa_cli.console import Console

_KEPT = "interrupted; no mask file was written, and --resume goes on where this stopped"


def search_masks(
    out: Annotated[Path, typer.Option("--out", "-o", help="The mask file, as masks.safetensors.")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="May be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="File with one prompt a line.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", "-s", help="Seed of the noise. May be repeated. (default: 0)")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="adaspa, an ablation of it, or frame-region.")] = None,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", help="Share of the video blocks left out, 0 to 1.")
    ] = None,
    search_steps: Annotated[
        str | None, typer.Option("--search-steps", help="Steps at which masks are searched, as 10,30.", metavar="STEPS")
    ] = None,
    share_cfg_masks: Annotated[
        bool | None,
        typer.Option(
            "--share-cfg-masks/--no-share-cfg-masks", help="Masks of the conditional branch of guidance alone."
        ),
    ] = None,
    first_step_only: Annotated[
        bool, typer.Option("--first-step-only", help="Search at the first of them alone, and stop there.")
    ] = False,
    keep_ranking: Annotated[
        float | None,
        typer.Option(
            "--keep-ranking",
            metavar="DENSITY",
            help="Keep the order of each row's blocks up to this density, for other sparsities. Takes more space.",
        ),
    ] = None,
    keep_sums: Annotated[
        bool, typer.Option("--keep-sums", help="Keep the block sums too, for masks compare. Takes much more space.")
    ] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="As of generate.")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="As of generate.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps of the whole run.")] = None,
    height: Annotated[int | None, typer.Option("--height", help="Height in pixels.")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Width in pixels.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", help="Pictures of the video.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N.")] = None,
    random_weights: Annotated[
        bool | None, typer.Option("--random-weights", help="Real architecture, random weights: times and sizes alone.")
    ] = None,
    layers: Annotated[int | None, typer.Option("--layers", help="With random weights: so many layers.")] = None,
    compile_blocks: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Blocks through torch.compile.")
    ] = None,
    offload: Annotated[str | None, typer.Option("--offload", help="none, model, group.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting of generate, as block_size=64.", metavar="KEY=VALUE"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file of settings, as of generate.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an unfinished search; a finished one is left as it is.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Result as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Traceback on errors.")] = False,
) -> None:
    """Search masks and keep them in a file, for adaspa generate --masks FILE.

    Several prompts and seeds are averaged. Each is run no further than its last search step.

    Example: adaspa search-masks --prompt "a red circle moves left on a blue background" --out masks.safetensors
    """
    given: dict[str, Any] = {
        "prompt": prompt,
        "prompts": None if prompts is None else str(prompts),
        "seed": seed,
        "method": method,
        "sparsity": sparsity,
        "search_steps": search_steps,
        "share_cfg_masks": share_cfg_masks,
        "model": model,
        "weights": weights,
        "steps": steps,
        "height": height,
        "width": width,
        "frames": frames,
        "device": device,
        "random_weights": random_weights,
        "layers": layers,
        "compile": compile_blocks,
        "offload": offload,
    }
    console = Console(as_json=as_json, quiet=quiet, debug=debug)
    with guard(console, _KEPT):
        flags = parse_settings(settings or []) | {k: v for k, v in given.items() if v not in (None, [])}
        kept = {"keep_ranking": keep_ranking, "keep_sums": keep_sums}
        _run(console, flags, config, out.expanduser(), first_step_only=first_step_only, resume=resume, **kept)


def _run(console: Console, flags: dict[str, Any], file: Path | None, out: Path, **options: Any) -> None:
    from adaspa_cli.config import resolve
    from adaspa_cli.config.architecture import random_weights_note
    from adaspa_cli.config.load import parse_steps
    from adaspa_cli.config.mask_search import SearchOptions
    from adaspa_cli.jobs.prompts import collect_prompts

    searched = SearchOptions(out, **options)
    if "search_steps" in flags and isinstance(flags["search_steps"], str):
        flags["search_steps"] = parse_steps(flags["search_steps"])
    resolved = resolve(flags, file)
    searched.check(resolved.config.method)
    prompts = collect_prompts(resolved.config.prompts)  # before torch is imported: a wrong one is refused at once
    note = random_weights_note(resolved.config.model)
    if note:
        console.note(note)
    console.note("starting ...")

    from adaspa_cli.commands.progress import SearchProgress
    from adaspa_cli.jobs.mask_search import search_masks
    from adaspa_cli.models.loading import choose_device
    from adaspa_cli.report.machine import peak_memory

    begin = time.perf_counter()
    with console.progress() as progress:
        masks = search_masks(resolved, searched, prompts, SearchProgress(console, progress))
    facts = masks.description
    recalls = [value for entry in facts.entries for value in entry.recall]
    densities = [value for entry in facts.entries for value in entry.density]
    data: dict[str, Any] = {
        "file": str(out),
        "bytes": out.stat().st_size,
        "checksum": masks.checksum,
        "search_steps": list(facts.search_steps),
        "videos": len(facts.prompts) * len(facts.seeds),
        "density": sum(densities) / len(densities),
        "recall": sum(recalls) / len(recalls),
        "seconds": time.perf_counter() - begin,  # loading and writing included
        "peak_memory": peak_memory(choose_device(resolved.config.model.device)),
    }
    line = (
        f"{data['bytes'] / 1e6:.2f} MB: {facts.layers} layers, {facts.heads} heads, steps "
        f"{', '.join(map(str, facts.search_steps))} of {facts.steps}, density {data['density']:.1%}, "
        f"mean recall {data['recall']:.1%}"
    )
    console.result(data, Group(Text(str(out), no_wrap=True, overflow="ignore"), Text(line)))

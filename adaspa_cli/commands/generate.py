"""``adaspa generate``: videos from prompts, and a latency report of each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from adaspa_cli.commands.guard import guard
from adaspa_cli.config.names import BACKENDS, CACHES, DENSE, DTYPES, OFFLOADS
from adaspa_cli.console import Console

_WHAT, _METHOD, _SAMPLING, _MACHINE, _OUTPUT = "What to show", "Method", "Sampling", "Model and machine", "Output"


def _option(*names: str, panel: str, text: str, metavar: str | None = None, default: str | None = None) -> Any:
    """A flag whose real default is None, not given; ``default`` is what holds then, if no preset says otherwise."""
    shown = f"{text} (default: {default})" if default else text
    return typer.Option(*names, help=shown, rich_help_panel=panel, metavar=metavar, show_default=False)


def generate(
    prompt: Annotated[
        list[str] | None, _option("--prompt", "-p", panel=_WHAT, text="What the video shows. May be repeated.")
    ] = None,
    prompts: Annotated[Path | None, _option("--prompts", panel=_WHAT, text="File with one prompt a line.")] = None,
    negative_prompt: Annotated[
        str | None, _option("--negative-prompt", panel=_WHAT, text="What it should not show.")
    ] = None,
    seed: Annotated[
        list[int] | None, _option("--seed", "-s", panel=_WHAT, text="Seed of the noise. May be repeated.", default="0")
    ] = None,
    method: Annotated[
        str | None,
        _option(
            "--method",
            panel=_METHOD,
            text="adaspa, sparse-videogen, minference, frame-region, full, diffusers, or another of configs/methods.",
            default="adaspa",
        ),
    ] = None,
    sparsity: Annotated[
        float | None, _option("--sparsity", panel=_METHOD, text="Share of the video blocks left out, 0 to 1.")
    ] = None,
    search_steps: Annotated[
        str | None,
        _option("--search-steps", panel=_METHOD, text="Steps at which masks are searched, as 10,30.", metavar="STEPS"),
    ] = None,
    block_size: Annotated[int | None, _option("--block-size", panel=_METHOD, text="Tokens of a block.")] = None,
    head_adaptive: Annotated[
        bool | None,
        _option("--head-adaptive/--no-head-adaptive", panel=_METHOD, text="Spread the sparsity over the heads."),
    ] = None,
    lse_cache: Annotated[
        bool | None,
        _option("--lse-cache/--no-lse-cache", panel=_METHOD, text="Later searches reuse the first one's LSE."),
    ] = None,
    share_cfg_masks: Annotated[
        bool | None,
        _option(
            "--share-cfg-masks/--no-share-cfg-masks", panel=_METHOD, text="Both branches of guidance use one's masks."
        ),
    ] = None,
    masks: Annotated[
        Path | None, _option("--masks", panel=_METHOD, text="Mask file of adaspa search-masks, instead of a search.")
    ] = None,
    masks_from_start: Annotated[
        bool | None,
        _option("--masks-from-start/--no-masks-from-start", panel=_METHOD, text="No dense steps before the masks."),
    ] = None,
    masks_min_recall: Annotated[
        float | None,
        _option("--masks-min-recall", panel=_METHOD, text="Measure each layer's recall with the masks: at least this."),
    ] = None,
    masks_fallback: Annotated[
        str | None,
        _option("--masks-fallback", panel=_METHOD, text="search or warn, where it is lower.", default="search"),
    ] = None,
    cache: Annotated[
        str | None,
        _option("--cache", panel=_METHOD, text=", ".join(CACHES) + ": reuse results of earlier steps.", default="none"),
    ] = None,
    steps: Annotated[int | None, _option("--steps", panel=_SAMPLING, text="Denoising steps.")] = None,
    steps_per_phase: Annotated[
        int | None,
        _option(
            "--steps-per-phase",
            panel=_SAMPLING,
            text="With random weights: compute so many steps of each phase, estimate the others.",
        ),
    ] = None,
    height: Annotated[int | None, _option("--height", panel=_SAMPLING, text="Height in pixels.")] = None,
    width: Annotated[int | None, _option("--width", panel=_SAMPLING, text="Width in pixels.")] = None,
    frames: Annotated[int | None, _option("--frames", panel=_SAMPLING, text="Pictures of the video.")] = None,
    fps: Annotated[int | None, _option("--fps", panel=_SAMPLING, text="Pictures per second.")] = None,
    guidance_scale: Annotated[
        float | None, _option("--guidance-scale", panel=_SAMPLING, text="The model's guidance.")
    ] = None,
    true_cfg_scale: Annotated[
        float | None,
        _option("--true-cfg-scale", panel=_SAMPLING, text="HunyuanVideo: guidance in two passes, above 1."),
    ] = None,
    flow_shift: Annotated[
        float | None, _option("--flow-shift", panel=_SAMPLING, text="Shift of the flow-matching scheduler.")
    ] = None,
    model: Annotated[
        str | None,
        _option(
            "--model",
            "-m",
            panel=_MACHINE,
            text="tiny, hunyuan, fasthunyuan, cogvideox, folder or hub id.",
            default="tiny",
        ),
    ] = None,
    weights: Annotated[
        str | None, _option("--weights", panel=_MACHINE, text="Folder or hub id to take a named model's weights from.")
    ] = None,
    dtype: Annotated[str | None, _option("--dtype", panel=_MACHINE, text=", ".join(DTYPES), default="auto")] = None,
    device: Annotated[
        str | None, _option("--device", panel=_MACHINE, text="auto, cpu, cuda, cuda:N.", default="auto")
    ] = None,
    attention_backend: Annotated[
        str | None, _option("--attention-backend", panel=_MACHINE, text=", ".join(BACKENDS), default="auto")
    ] = None,
    random_weights: Annotated[
        bool | None,
        _option(
            "--random-weights", panel=_MACHINE, text="Real architecture, random weights: times alone, no download."
        ),
    ] = None,
    layers: Annotated[
        int | None, _option("--layers", panel=_MACHINE, text="With random weights: so many layers instead of all.")
    ] = None,
    compile_blocks: Annotated[
        bool | None,
        _option(
            "--compile/--no-compile", panel=_MACHINE, text="Blocks through torch.compile; the first step compiles them."
        ),
    ] = None,
    offload: Annotated[
        str | None,
        _option(
            "--offload", panel=_MACHINE, text=", ".join(OFFLOADS) + ": trade speed for GPU memory.", default="none"
        ),
    ] = None,
    vae_tiling: Annotated[
        bool | None, _option("--vae-tiling/--no-vae-tiling", panel=_MACHINE, text="Decode in tiles, for less memory.")
    ] = None,
    vae_framewise: Annotated[
        bool | None,
        _option("--vae-framewise/--no-vae-framewise", panel=_MACHINE, text="Decode in overlapping pieces of time."),
    ] = None,
    out: Annotated[
        Path | None, _option("--out", "-o", panel=_OUTPUT, text="Folder of the videos.", default="videos")
    ] = None,
    decode: Annotated[
        bool | None,
        _option("--decode/--no-decode", panel=_OUTPUT, text="End in a video, or in latents. (default: video, if real)"),
    ] = None,
    lossless: Annotated[
        bool | None, _option("--lossless/--no-lossless", panel=_OUTPUT, text="Write NAME.lossless.mkv as well.")
    ] = None,
    compare_with: Annotated[
        list[str] | None,
        _option(
            "--compare-with",
            panel=_OUTPUT,
            text="NAME.report.json of another run, shown beside this one on its page. May be repeated.",
            metavar="REPORT",
        ),
    ] = None,
    resume: Annotated[
        bool | None, _option("--resume/--no-resume", panel=_OUTPUT, text="Skip what is complete in the folder.")
    ] = None,
    config: Annotated[
        Path | None, _option("--config", "-c", panel=_OUTPUT, text="YAML file of settings, as --print-config shows.")
    ] = None,
    print_config: Annotated[
        bool, _option("--print-config", panel=_OUTPUT, text="Show what a run would use, and why; make nothing.")
    ] = False,
    as_json: Annotated[bool, _option("--json", panel=_OUTPUT, text="Result as JSON on stdout.")] = False,
    quiet: Annotated[bool, _option("--quiet", "-q", panel=_OUTPUT, text="No progress, no notes.")] = False,
    debug: Annotated[bool, _option("--debug", panel=_OUTPUT, text="Traceback on errors.")] = False,
) -> None:
    """Make videos from prompts, each with a latency report as JSON and as a page.

    Example: adaspa generate --prompt "a red circle moves left on a blue background"
    """
    given: dict[str, Any] = {
        "prompt": prompt,
        "prompts": None if prompts is None else str(prompts),
        "negative_prompt": negative_prompt,
        "seed": seed,
        "method": method,
        "sparsity": sparsity,
        "search_steps": search_steps,
        "block_size": block_size,
        "head_adaptive": head_adaptive,
        "lse_cache": lse_cache,
        "share_cfg_masks": share_cfg_masks,
        "masks": None if masks is None else str(masks),
        "masks_from_start": masks_from_start,
        "masks_min_recall": masks_min_recall,
        "masks_fallback": masks_fallback,
        "cache": cache,
        "steps": steps,
        "steps_per_phase": steps_per_phase,
        "height": height,
        "width": width,
        "frames": frames,
        "fps": fps,
        "guidance_scale": guidance_scale,
        "true_cfg_scale": true_cfg_scale,
        "flow_shift": flow_shift,
        "model": model,
        "weights": weights,
        "dtype": dtype,
        "device": device,
        "attention_backend": attention_backend,
        "random_weights": random_weights,
        "layers": layers,
        "compile": compile_blocks,
        "offload": offload,
        "vae_tiling": vae_tiling,
        "vae_framewise": vae_framewise,
        "out": None if out is None else str(out),
        "decode": decode,
        "lossless": lossless,
        "compare_with": compare_with,
        "resume": resume,
    }
    console = Console(as_json=as_json, quiet=quiet, debug=debug)
    with guard(console):
        _run(console, {key: value for key, value in given.items() if value not in (None, [])}, config, print_config)


def _run(console: Console, flags: dict[str, Any], file: Path | None, print_config: bool) -> None:
    from adaspa_cli.config import resolve
    from adaspa_cli.config.architecture import random_weights_note
    from adaspa_cli.config.load import parse_steps

    if "search_steps" in flags:
        flags["search_steps"] = parse_steps(flags["search_steps"])
    resolved = resolve(flags, file)
    if print_config:
        settings = {k: {"value": v, "origin": resolved.origins()[k]} for k, v in resolved.flat().items()}
        console.result(settings, resolved.as_yaml().rstrip())
        return
    note = random_weights_note(resolved.config.model)
    if note:
        console.note(note)
    method, steps = resolved.config.method, resolved.config.sampling.steps
    if method.masks is None and method.algorithm not in DENSE:
        asked, planned = list(method.search_steps), list(method.schedule(steps))
        if planned != asked:
            console.note(f"search steps {asked} scaled to {planned}, for {steps} steps")

    from adaspa_cli.jobs.prompts import collect_prompts

    prompts = collect_prompts(resolved.config.prompts)  # before torch is imported: a wrong one is refused at once
    console.note("starting ...")

    from adaspa_cli.commands.progress import ProgressObserver
    from adaspa_cli.sampling.run import generate as run

    reports: list[dict[str, Any]] = []
    try:
        with console.progress() as progress:
            for report in run(resolved, ProgressObserver(console, progress), prompts):
                reports.append(report)
    finally:
        if reports:
            _show(console, Path(resolved.config.output.out).expanduser(), reports)


def _show(console: Console, folder: Path, reports: list[dict[str, Any]]) -> None:
    from adaspa_cli.report.steps import estimated_note

    names = [report["video"]["file"] for report in reports]
    videos = [name and str(folder / name) for name in names]
    data = [{"video": video, "report": report} for video, report in zip(videos, reports, strict=True)]
    lines = [Text(video, no_wrap=True, overflow="ignore") for video in videos if video]
    said = [note for report in reports for note in (report.get("random_weights"), estimated_note(report))]
    lines += [Text(note) for note in dict.fromkeys(said) if note]
    lines += [Text(note) for note in map(_mask_note, reports) if note]
    console.result(data, Group(*lines, _table(reports)))


def _mask_note(report: dict[str, Any]) -> str | None:
    """What was measured of the masks of a file."""
    masks = report.get("mask_file")
    if not masks or not masks["checks"]:
        return None
    done = "searched anew" if masks["searched"] else "used all the same"
    below = f", {done}" if masks["below"] else ""
    return (
        f"masks of {masks['file']}: recall below {masks['min_recall']:g} in {masks['below']} of {len(masks['checks'])} "
        f"masks{below}"
    )


def _table(reports: list[dict[str, Any]]) -> Table:
    """One line of figures per video; what a cache skipped and what was merged only where there is such a thing."""
    table = Table(box=None, pad_edge=False)
    extras = [key for key in ("cache", "merging") if any(report.get(key) for report in reports)]
    for title in ("denoising", "attention", "decoding", "total", "density", *extras):
        table.add_column(title, justify="right")
    for report in reports:
        seconds = report["seconds"]
        shown = (seconds[key] for key in ("denoising", "attention", "decoding", "total"))
        times = ("n/a" if value is None else f"{value:.1f} s" for value in shown)
        more = (_saved(report, key) for key in extras)
        table.add_row(*times, f"{report['density']:.1%}", *more)
    return table


def _saved(report: dict[str, Any], key: str) -> str:
    """What a cache skipped or a merging merged, in words."""
    work = report.get(key)
    if not work:
        return "none"
    if key == "merging":
        return f"{work['name']}: {work['merged']:.1%} of video tokens merged"
    return f"{work['name']}: {work['skipped']:.1%} of {work['unit']} calls skipped"

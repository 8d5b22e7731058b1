"""``adaspa generate``: videos from prompts, and a latency report of each."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from adaspa_cli import interrupts
from adaspa_cli.commands import options
from adaspa_cli.commands.command import command
from adaspa_cli.commands.early import say_early
from adaspa_cli.commands.gallery import renew_gallery
from adaspa_cli.commands.settings import Given
from adaspa_cli.commands.together import Member, member, started_by_torchrun
from adaspa_cli.config.presets import DEFAULT_METHOD
from adaspa_cli.console import Console
from adaspa_cli.distributed.launch import launch
from adaspa_cli.jobs.early import check_early

if TYPE_CHECKING:
    from adaspa_cli.config import GenerateConfig, ModelConfig, Resolved
    from adaspa_cli.forecast.calibration import Rates, Sample
    from adaspa_cli.jobs.shard import Shard
    from adaspa_cli.jobs.write import Made
    from adaspa_cli.report.schema import Report


@command(*options.GENERATE)
def generate(
    *,
    given: Given,
    shard: Annotated[str | None, options.shard_option("videos", "Implies --resume.", panel=options.OUTPUT)] = None,
    ray: Annotated[str | None, options.RAY] = None,
    ray_workers: Annotated[int | None, options.RAY_WORKERS] = None,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config",
            rich_help_panel=options.OUTPUT,
            help="Show every setting and where its value comes from, then stop.",
        ),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            rich_help_panel=options.OUTPUT,
            help="Show tokens, steps, and the memory and time estimated for this machine, then stop.",
        ),
    ] = False,
    console: Console,
) -> None:
    """Make videos from prompts, each with a latency report as JSON and as a page.

    Example: adaspa generate --prompt "a red circle moves left on a blue background"
    """
    from adaspa_cli.distributed.refuse import check_alone, check_together

    share = options.parse_shard(shard)
    with member(console, None if share or ray else started_by_torchrun()) as own:
        resolved = given.resolve(default_method=DEFAULT_METHOD, download=not plan)
        if print_config:
            settings = {k: {"value": v, "origin": resolved.origins()[k]} for k, v in resolved.flat().items()}
            if own.leads:
                console.result(settings, resolved.as_yaml().rstrip())
            return
        _check_ray(ray, ray_workers, share, resolved.config)
        if share is not None:
            check_alone(resolved.config, "a process with --shard")
        launches = own.launches(resolved.config.parallel)
        check_together(resolved.config, own.processes(resolved.config.parallel))
        if not own.leads:
            _follow(own, resolved)
            return
        quiet = launches and not plan
        prompts = _check(console.muted() if quiet else console, given, resolved, share, download=not plan)
        if plan:
            _show_plan(console, resolved, prompts)
            return
        if launches:
            raise typer.Exit(launch(resolved.config.parallel.gpus, sys.argv[1:], resolved.config.model.device))
        console.note("starting ...")
        if ray is not None:
            _run_on_ray(console, resolved, prompts, ray, ray_workers)
        else:
            _run(own, resolved, prompts, share)
        if (len(prompts) > 1 or resolved.config.prompts.prompts is not None) and resolved.config.decodes:
            renew_gallery(console, resolved.config.output.out)


def _check_ray(ray: str | None, workers: int | None, shard: Shard | None, config: GenerateConfig) -> None:
    """Refuse what can't be combined with Ray, before torch is imported."""
    from adaspa_cli.errors import ConfigError, UsageError

    if ray is None:
        if workers is not None:
            raise ConfigError("--ray-workers needs --ray", hint="add --ray local, or drop --ray-workers")
        return
    if shard is not None:
        raise ConfigError("--ray distributes the videos itself", hint="drop --shard")
    if config.parallel.gpus > 1:
        raise ConfigError("each Ray worker makes a video on one GPU", hint="drop --gpus, or drop --ray")
    if config.model.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"--ray assigns a GPU to each worker, but --device is '{config.model.device}'", hint="drop --device"
        )
    if find_spec("ray") is None:
        raise UsageError("--ray needs Ray, which is not installed", hint="pip install 'adaspa[ray]'")


def _show_plan(console: Console, resolved: Resolved, prompts: list[str]) -> None:
    from adaspa_cli.commands.plan import rendered
    from adaspa_cli.forecast import calibration
    from adaspa_cli.forecast.run import forecast
    from adaspa_cli.models.registry import check_read
    from adaspa_cli.models.text_parts import load_text_parts

    def measure(sample: Sample) -> Rates:
        console.note("measuring this machine ...")
        return calibration.calibrate(sample)

    pipe = load_text_parts(resolved.config.model)
    if pipe is not None:
        check_read(pipe, resolved.config, prompts, console.note)
    found = forecast(resolved.config, prompts, measure)
    console.result(found.as_json(), rendered(found))


def _check(console: Console, given: Given, resolved: Resolved, share: Shard | None, *, download: bool) -> list[str]:
    """Refuse what can be refused early, and say what is worth knowing; returns the prompts."""
    resumes = resolved.config.output.resume or share is not None
    prompts = check_early(
        console.note, resolved, resolved.config.output.out, may_be_complete=resumes, download=download
    )
    _check_compared(resolved.config, prompts)
    say_early(console, given, resolved, prompts)
    _say_schedule(console, resolved)
    return prompts


def _follow(own: Member, resolved: Resolved) -> None:
    from adaspa_cli.jobs.follow import follow

    interrupts.unwind()
    with own.world(resolved.config.model.device, resolved.config.parallel) as world:
        follow(resolved, world)


def _check_compared(config: GenerateConfig, prompts: list[str]) -> None:
    from adaspa_cli.report.compare import load_compared

    wanted = {(prompt, seed) for prompt in prompts for seed in config.sampling.seed}
    load_compared(config.output.compare_with, wanted, config)


def _say_schedule(console: Console, resolved: Resolved) -> None:
    from adaspa_cli.config.methods import SparseConfig

    method, steps = resolved.config.method, resolved.config.sampling.steps
    if method.mask_file.masks is None and isinstance(method.algorithm, SparseConfig):
        asked, planned = list(method.algorithm.search_steps), list(method.algorithm.schedule(steps))
        if planned != asked:
            sparsity = method.algorithm.sparsity_by_step(steps)
            if isinstance(sparsity, tuple):
                shown = ", ".join(map(str, planned))
                goes = "rises" if list(sparsity) == sorted(sparsity) else "changes"
                ramp = f"its sparsity {goes} from {sparsity[0]:g} to {sparsity[-1]:g}"
                ramp = ramp if len(set(sparsity)) > 1 else f"its sparsity is {sparsity[0]:g}"
                said = f"{method.method} searches at steps {shown} (of 0 to {steps - 1}): {ramp}"
            else:
                said = f"search steps {asked} scaled to {planned}, of steps 0 to {steps - 1}"
            console.note(f"{said}{_each_transformer(resolved.config.model)}")


def _each_transformer(model: ModelConfig) -> str:
    """What becomes of search steps where two transformers share a run: where the second begins, its scheduler knows."""
    from adaspa_cli.config.architecture import known_architecture

    found = known_architecture(model)
    return "" if found is None or len(found.transformers) < 2 else "; the second transformer begins with a search too"


def _run(own: Member, resolved: Resolved, prompts: list[str], shard: Shard | None) -> None:
    from adaspa_cli.commands.progress import ProgressObserver
    from adaspa_cli.jobs.generate import generate as run
    from adaspa_cli.jobs.shard import take_gpu

    console, config = own.console, resolved.config
    take_gpu(shard, config.model.device)
    made: list[Made] = []
    try:
        with console.progress() as progress, own.world(config.model.device, config.parallel) as world:
            for one in run(resolved, ProgressObserver(console, progress), prompts, shard, world):
                made.append(one)
    finally:
        if made:
            _show(console, made)
    if shard is not None:
        _end_share(console, resolved, prompts, shard, made)


def _run_on_ray(console: Console, resolved: Resolved, prompts: list[str], address: str, workers: int | None) -> None:
    from adaspa_cli.commands.progress import RayProgress
    from adaspa_cli.jobs.ray_run import Cluster, generate_on_ray

    made: list[Made] = []
    seeds = resolved.config.sampling.seed
    try:
        with console.progress() as progress, redirect_stdout(sys.stderr):  # Ray prints there what it thinks worth it
            observer = RayProgress(console, progress)
            for one in generate_on_ray(resolved, observer, prompts, Cluster(address, workers)):
                made.append(one)
    finally:
        if made:
            _show(console, sorted(made, key=lambda m: (prompts.index(m.report.prompt), seeds.index(m.report.seed))))


def _end_share(console: Console, resolved: Resolved, prompts: list[str], shard: Shard, made: list[Made]) -> None:
    """Say how much of the whole run is there."""
    from adaspa_cli.jobs.generate import resuming
    from adaspa_cli.jobs.plan import plan

    jobs = plan(resuming(resolved), prompts)
    own, whole = ([job.complete for job in part] for part in (shard.take(jobs), jobs))
    if not made:
        console.result([], f"shard {shard}: no video")
    complete = f"{sum(own)} of {len(own)} videos are complete, of the whole run {sum(whole)} of {len(whole)}"
    console.note(f"shard {shard}: {complete}; --resume without --shard shows all")


def _show(console: Console, made: list[Made]) -> None:
    from adaspa_cli.jobs.places import page_path
    from adaspa_cli.report.compensation import error_note
    from adaspa_cli.report.parallel import parallel_note
    from adaspa_cli.report.steps import estimated_note
    from adaspa_cli.report.words import compared_note

    reports = [one.report for one in made]
    data = [
        {"result": str(one.result), "video": one.video and str(one.video), "report": one.report.as_json()}
        for one in made
    ]
    paths = [text for one in made for text in (str(one.result), f"page: {page_path(one.place)}")]
    lines = [Text(path, no_wrap=True, overflow="ignore") for path in paths]
    said = [note for report in reports for note in (report.random_weights, estimated_note(report))]
    lines += [Text(note) for note in dict.fromkeys(said) if note]
    for one in made:
        name = f"{one.place.stem}: " if len(made) > 1 else ""
        own = one.report
        notes = (_mask_note(own), error_note(own), compared_note(own), parallel_note(own.parallel))
        lines += [Text(f"{name}{note}") for note in notes if note]
    console.result(data, Group(*lines, _table(made)))


def _mask_note(report: Report) -> str | None:
    """What was measured of the masks of a file."""
    masks = report.mask_file
    if masks is None or not masks.checks:
        return None
    done = "searched again" if masks.searched else "used anyway"
    below = f", {done}" if masks.below else ""
    return (
        f"masks of {masks.file}: recall below {masks.min_recall:g} in {masks.below} of {len(masks.checks)} masks{below}"
    )


def _table(made: list[Made]) -> Table:
    """One line of figures per video; what a cache skipped and what was merged only where there is such a thing."""
    table, reports = Table(box=None, pad_edge=False), [one.report for one in made]
    if len(made) > 1:
        table.add_column("video", overflow="fold")
    extras = [key for key in ("cache", "merging") if any(getattr(report, key) for report in reports)]
    for title in ("denoising", "attention", "decoding", "total", "density", *extras):
        table.add_column(title, justify="right")
    for one, report in zip(made, reports, strict=True):
        seconds = report.seconds
        shown = (seconds.denoising, seconds.attention, seconds.decoding, seconds.total)
        times = ("n/a" if value is None else f"{value:.1f} s" for value in shown)
        density = "n/a" if report.density is None else f"{report.density:.1%}"
        name = [Text(one.place.stem)] if len(made) > 1 else []
        table.add_row(*name, *times, density, *(_saved(report, key) for key in extras))
    return table


def _saved(report: Report, key: str) -> str:
    """What a cache skipped or a merging merged, in words."""
    if key == "merging" and report.merging and report.merging.merged is not None:
        return f"{report.merging.name}: {report.merging.merged:.1%} of video tokens merged"
    if key == "cache" and report.cache and report.cache.skipped is not None:
        return f"{report.cache.name}: {report.cache.skipped:.1%} of {report.cache.unit} calls skipped"
    return "none"

"""``adaspa bench``: methods side by side, and the tables, plots and videos of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import rich.table
import typer
from rich.console import Group
from rich.text import Text

from adaspa_cli import interrupts
from adaspa_cli.commands import options
from adaspa_cli.commands.command import command
from adaspa_cli.commands.completion import among
from adaspa_cli.commands.settings import Given
from adaspa_cli.config.presets import preset_names
from adaspa_cli.console import Console
from adaspa_cli.jobs.early import note_repeated

if TYPE_CHECKING:
    from adaspa_cli.bench.plan import PlannedRow
    from adaspa_cli.bench.schema import Bench
    from adaspa_cli.bench.spec import BenchSpec
    from adaspa_cli.jobs.shard import Shard


@dataclass(frozen=True)
class _Task:
    """What is done with a bench, besides the tables.

    Attributes:
        out: folder of runs and tables.
        shard: the share of the runs to make, without tables; None makes all, and the tables.
        rerun_changed: repeat runs that exist with other settings.
        tables_only: make no runs.
        times: show times and speed-ups.
    """

    out: Path
    shard: Shard | None
    rerun_changed: bool
    tables_only: bool
    times: bool


@command(
    options.SEED.but(text="Seed of the noise, instead of the bench's. Repeatable.", default=None),
    options.MODEL.but(text="Model for all rows.", default=None),
    options.DEVICE.but(default=None),
    options.RANDOM_WEIGHTS,
    options.LAYERS,
    options.COMPILE.but(text="Run the transformer blocks of all rows through torch.compile."),
    options.SET.but(text="A setting for all rows, for example steps=20. Repeatable."),
    panels=False,
    interrupted="interrupted; complete runs are kept, and the same command continues from there",
)
def bench(
    *,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", "-p", help=", ".join(preset_names("bench")) + ".", autocompletion=among(preset_names("bench"))
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Your own bench, as a YAML file.")] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for runs and tables. Complete runs are not repeated.")
    ] = Path("bench"),
    rows: Annotated[
        str | None, typer.Option("--rows", help="Run only these rows, for example full,adaspa.", metavar="NAMES")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Run only the first N prompts.")] = None,
    given: Given,
    shard: Annotated[str | None, options.shard_option("runs", "Writes no tables.", "--part")] = None,
    rerun_changed: Annotated[
        bool,
        typer.Option("--rerun-changed", help="Repeat runs that exist with other settings; the old files are kept."),
    ] = False,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Run nothing; write the tables of the existing runs.")
    ] = False,
    times: Annotated[
        bool,
        typer.Option(
            "--times/--no-times",
            help="Show times and speed-ups; leave them out if other work ran on the machine.",
        ),
    ] = True,
    plan: Annotated[bool, typer.Option("--plan", help="Show the rows and which runs are complete, then stop.")] = False,
    console: Console,
) -> None:
    """Compare methods: measure quality and latency of every row with every prompt and seed.

    Example: adaspa bench --preset tiny-smoke --out bench
    """
    from adaspa_cli.bench.spec import load_bench

    spec = _chosen(console, load_bench(preset, config), given, rows, limit)
    task = _Task(out.expanduser(), _parse_shard(shard, tables_only=tables_only), rerun_changed, tables_only, times)
    if _run(console, spec, task, plan_only=plan):
        raise typer.Exit(1)


def _chosen(console: Console, spec: BenchSpec, given: Given, rows: str | None, limit: int | None) -> BenchSpec:
    """The requested part of a bench, with changed settings."""
    settings = given.settings()
    seeds = settings.pop("seed") if "seed" in given.flags else None  # --set seed=1 is refused
    if rows is not None:
        spec = spec.chosen(rows)
    spec = spec.changed(settings)
    if limit is not None:
        spec = dataclasses.replace(spec, prompts=spec.prompts[:limit])
    if seeds:
        from adaspa_cli.config.load import check_value

        check_value("seed", seeds, "flag --seed")
    note_repeated(console.note, "seed", seeds or spec.seeds)
    return dataclasses.replace(spec, seeds=tuple(dict.fromkeys(seeds or spec.seeds)))


def _parse_shard(text: str | None, *, tables_only: bool) -> Shard | None:
    """The share of ``--shard``.

    Raises:
        ConfigError: it cannot be read, or there are to be tables alone.
    """
    from adaspa_cli.errors import ConfigError

    shard = options.parse_shard(text)
    if shard is not None and tables_only:
        raise ConfigError("--shard makes no tables", hint="drop --shard: the tables cover all existing runs")
    return shard


def _run(console: Console, spec: BenchSpec, task: _Task, *, plan_only: bool) -> int:
    """Make the runs and the tables; returns how many runs failed."""
    from adaspa_cli.bench.paper import load_tables
    from adaspa_cli.bench.spec import naming
    from adaspa_cli.config import resolve
    from adaspa_cli.errors import ConfigError
    from adaspa_cli.files.folders import check_folder

    check_folder(str(task.out))
    if task.tables_only and not task.out.is_dir():
        raise ConfigError(f"--tables-only: there is no folder {task.out}", hint="--out names that of an earlier call")
    paper = load_tables(spec.paper)
    for row in spec.rows:  # before torch is imported: a wrong one is refused at once
        with naming(row):
            resolve({**spec.run, **row.settings}, origin=f"bench row {row.name}")
    console.note("starting ...")

    from adaspa_cli.bench.plan import plan_bench, share_of

    planned = plan_bench(spec, task.out, rerun_changed=task.rerun_changed)
    if task.shard is not None:
        planned = share_of(planned, task.shard)
    if plan_only:
        _show_plan(console, planned)
        return 0

    from adaspa_cli.bench.write import write_bench
    from adaspa_cli.commands.progress import BenchProgress

    if not task.tables_only:
        from adaspa_cli.bench.measure import check_metrics
        from adaspa_cli.bench.runner import run_bench
        from adaspa_cli.jobs.shard import take_gpu

        check_metrics(planned)
        take_gpu(task.shard, _device(planned))
        with console.progress() as progress:
            left = run_bench(planned, BenchProgress(console, progress), warmup_steps=spec.warmup_steps)
        if left:
            console.note(f"{left} runs were left to other processes; the last of them writes the tables of all runs")
    if task.shard is not None:
        return _end_share(console, spec, planned, task.shard, task.out)
    interrupts.unwind()  # with tables alone there was no progress bar that said so
    result = write_bench(spec, planned, task.out, paper, console.note, times=task.times)
    _show(console, result, task.out)
    return sum(len(row.failures) for row in result.rows)


def _device(planned: list[PlannedRow]) -> str:
    """The device of all rows."""
    devices = {row.resolved.config.model.device for row in planned}
    return devices.pop() if len(devices) == 1 else "several"


def _end_share(console: Console, spec: BenchSpec, planned: list[PlannedRow], shard: Shard, out: Path) -> int:
    """Measure what one of several processes made, and say what is there; returns how many runs are not complete."""
    from adaspa_cli.bench.measure import measure_bench
    from adaspa_cli.bench.plan import current, share_of

    made = share_of([current(row, spec) for row in planned], shard)
    measure_bench(made, console.note)
    runs = [job.complete for row in made for job in row.jobs]
    data = {"shard": str(shard), "runs": len(runs), "complete": sum(runs)}
    text = f"shard {shard}: {sum(runs)} of {len(runs)} runs are complete in {out}"
    console.result(data, Text(f"{text}\n--tables-only, without --shard, writes the tables", overflow="ignore"))
    return len(runs) - sum(runs)


def _show_plan(console: Console, planned: list[PlannedRow]) -> None:
    table = rich.table.Table(box=None, pad_edge=False)
    for title in ("row", "runs", "complete"):
        table.add_column(title)
    data = []
    for row in planned:
        complete = sum(job.complete for job in row.jobs)
        table.add_row(Text(row.row.name), str(len(row.jobs)), str(complete))
        runs = {"runs": len(row.jobs), "complete": complete}
        data.append({"row": row.row.name, **runs, "settings": row.resolved.flat()})
    console.result(data, table)


def _show(console: Console, result: Bench, out: Path) -> None:
    from adaspa_cli.bench.render import tables, warnings
    from adaspa_cli.bench.write import FILES

    parts: list[Any] = [Text(said) for said in warnings(result)]
    for table in tables(result):
        shown = rich.table.Table(title=table.title, title_justify="left", box=None, pad_edge=False)
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if number else "left")
        for line in table.lines:
            shown.add_row(*map(Text, line))
        parts += [shown, Text("")]
    parts += [Text(str(out / name), no_wrap=True, overflow="ignore") for name in FILES]
    console.result(result.as_json(), Group(*parts))

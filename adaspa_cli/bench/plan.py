"""The runs of a bench: which there are, which are complete, and which were made with other settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adaspa_cli.bench.spec import BenchSpec, Row, naming
from adaspa_cli.config import ModelConfig, Resolved, SamplingConfig, resolve
from adaspa_cli.config.load import override
from adaspa_cli.distributed.refuse import check_alone
from adaspa_cli.errors import ConfigError, ReportError
from adaspa_cli.jobs.fingerprint import NOT_IN_FINGERPRINT
from adaspa_cli.jobs.places import report_path
from adaspa_cli.jobs.plan import Job, plan
from adaspa_cli.jobs.shard import Shard
from adaspa_cli.report.schema import Report, read_report

RUNS = "runs"


@dataclass(frozen=True)
class PlannedRow:
    """A row, its settings resolved, and its runs: every prompt with every seed, in the same order for all rows."""

    row: Row
    resolved: Resolved
    jobs: tuple[Job, ...]

    @property
    def dense(self) -> bool:
        """Whether its videos are what others are compared with: dense attention, nothing skipped or merged."""
        flat = self.resolved.flat()
        return flat["algorithm"] == "full" and all(flat.get(key, "none") == "none" for key in ("cache", "merge"))

    @property
    def untouched(self) -> bool:
        """Whether it is unmodified diffusers."""
        return not self.resolved.config.method.algorithm.attached

    @property
    def compiled(self) -> bool:
        """Whether its blocks run through torch.compile."""
        return self.resolved.config.model.compile

    @property
    def fp8(self) -> bool:
        """Whether its linear layers run in FP8."""
        return self.resolved.config.method.linear == "fp8"


def plan_bench(spec: BenchSpec, out: Path, *, rerun_changed: bool = False) -> list[PlannedRow]:
    """Resolve the rows, and look for runs that are there already; writes nothing.

    Args:
        rerun_changed: repeat runs that exist with other settings; their files are kept.

    Raises:
        ConfigError: a row's settings are impossible, or a run was made with other settings.
        OutputError: the output folder cannot be written.
    """
    rows = [_plan_row(spec, row, out) for row in spec.rows]
    if not rerun_changed:
        for row in rows:
            _refuse_changed(row)
    return rows


def _plan_row(spec: BenchSpec, row: Row, out: Path) -> PlannedRow:
    settings = override(spec.run, row.settings)
    measured = not settings.get("random_weights") and settings.get("decode") is not False
    own = {
        "prompt": list(spec.prompts),
        "seed": list(spec.seeds),
        "out": str(out / RUNS / row.folder),
        "resume": True,
        "lossless": measured,
    }
    with naming(row):
        resolved = resolve({**settings, **own}, origin=f"bench row {row.name}")
        check_alone(resolved.config, "bench")
        return PlannedRow(row, resolved, tuple(plan(resolved, spec.prompts)))


def _refuse_changed(planned: PlannedRow) -> None:
    for job in planned.jobs:
        if job.complete:
            continue
        for path in sorted(job.place.parent.glob("*.report.json")):
            report = report_at(path)
            if report is None or (report.prompt, report.seed) != (job.prompt, job.seed):
                continue
            if report.fingerprint == job.fingerprint:  # its video is gone: it is made again
                continue
            raise ConfigError(
                f"row '{planned.row.name}' was run with other settings before: {_difference(report, planned)} "
                f"({path.parent.name}/{path.name})",
                hint="--rerun-changed repeats such runs and keeps the old files; another --out keeps them apart",
            )


def _difference(report: Report, planned: PlannedRow) -> str:
    then = {key: setting.value for key, setting in report.settings.items()}
    now = planned.resolved.flat()
    keys = [key for key in {**now, **then} if key not in NOT_IN_FINGERPRINT and then.get(key) != now.get(key)]
    return ", ".join(f"{key} {then.get(key)!r} then, {now.get(key)!r} now" for key in keys) or "another format"


def report_at(path: Path) -> Report | None:
    """A report, or None where there is none that can be read."""
    try:
        return read_report(path)
    except ReportError:
        return None


def current(planned: PlannedRow, spec: BenchSpec) -> PlannedRow:
    """The same row, with the runs that are complete by now."""
    return dataclasses.replace(planned, jobs=tuple(plan(planned.resolved, spec.prompts)))


def share_of(rows: Sequence[PlannedRow], shard: Shard) -> list[PlannedRow]:
    """A share of all prompts and seeds, each of them with all rows: what one of several processes makes.

    All shares together are the whole, and dense runs are in the same share as what is compared with them.
    """
    return [dataclasses.replace(row, jobs=tuple(shard.take(row.jobs))) for row in rows]


def reference_of(planned: PlannedRow, rows: list[PlannedRow]) -> PlannedRow | None:
    """The dense row with the same model and sampling, which the row's videos and times are compared with.

    Both end in a video or both in latents. Of several one whose blocks are compiled if the row's own are, and of these
    one whose linear layers multiply in the model's dtype.
    """
    return _most_alike(planned, [row for row in rows if row.dense])


def untouched_of(planned: PlannedRow, rows: list[PlannedRow]) -> PlannedRow | None:
    """The row of the same model and sampling with unmodified diffusers: the second reference for times.

    Its videos are no reference: ``full`` equals them but for rounding, and shares its kernels with the sparse methods.
    """
    return _most_alike(planned, [row for row in rows if row.untouched])


def _most_alike(planned: PlannedRow, rows: list[PlannedRow]) -> PlannedRow | None:
    same = [row for row in rows if _drawn(row) == _drawn(planned)]
    return min(same, key=lambda row: (row.compiled != planned.compiled, row.fp8), default=None)


def _drawn(planned: PlannedRow) -> tuple[ModelConfig, SamplingConfig, bool]:
    """What is drawn, and whether it is decoded. Compiled blocks draw the same, and estimated times count as times."""
    config = planned.resolved.config
    sampling = dataclasses.replace(config.sampling, steps_per_phase=None)
    return dataclasses.replace(config.model, compile=False), sampling, config.decodes


def report_of(job: Job) -> Path:
    """Where the report of a complete run is."""
    return report_path(job.place)

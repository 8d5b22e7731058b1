"""Makes the incomplete runs of a bench, in turns, so that a drift in the machine's speed affects all rows.

A run that fails leaves a file with the reason in its place, and the bench continues. Each run is claimed before it is
made, so several processes share the work of one bench.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from adaspa_cli.bench.plan import PlannedRow
from adaspa_cli.bench.records import Failure
from adaspa_cli.bench.spec import by_keys
from adaspa_cli.bench.warm_up import warm_up
from adaspa_cli.config import ModelConfig
from adaspa_cli.errors import AdaspaError, DiskFullError, OutOfMemoryError, UsageError
from adaspa_cli.files.folders import prepare_folder
from adaspa_cli.files.whole import write_json
from adaspa_cli.jobs.generate import claim, claim_each, make
from adaspa_cli.jobs.places import ClaimedPlace
from adaspa_cli.jobs.plan import Job
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.models.registry import check_read
from adaspa_cli.sampling.memory import memory_errors
from adaspa_cli.sampling.run import Observer, session


class BenchObserver(Observer, Protocol):
    """Is notified of the progress of a bench."""

    def planned(self, runs: int, complete: int, steps: int) -> None: ...
    def failed(self, row: str, reason: str) -> None: ...


def failure_path(job: Job) -> Path:
    """The file with the reason of a failed run."""
    return job.place.with_name(f"{job.place.stem}.failure.json")


def run_bench(rows: Sequence[PlannedRow], observer: BenchObserver, *, warmup_steps: int = 0) -> int:
    """Make what is missing, prompt by prompt and seed by seed, with all rows in turn; returns how many runs other
    processes were at.

    Args:
        warmup_steps: denoising steps that each row runs first, unmeasured, so that kernels are compiled; more, where
            so few do not meet every phase of the row.

    Raises:
        ModelError: the checkpoint cannot be loaded. What fails later is recorded, and the next run begins.
        DiskFullError: the disk is full.
    """
    todo = [(row, job) for row in rows for job in row.jobs if not job.complete]
    steps = sum(row.resolved.config.sampling.steps for row, _ in todo)
    observer.planned(len(todo), sum(len(row.jobs) for row in rows) - len(todo), steps)
    left, number = 0, 0
    tried = _Tried([job for _, job in todo])
    for group in _groups(rows):
        # Prompt by prompt and seed by seed: the first jobs of all rows, then the second ones.
        turns = zip(*([(row, job) for job in row.jobs] for row in group), strict=True)
        jobs = [(row, job) for turn in turns for row, job in turn if not job.complete]
        if not any(tried.is_open(job) for _, job in jobs):
            left += len(jobs)
            continue
        config = group[0].resolved.config
        observer.loading(config.model.source)
        with memory_errors(config):
            pipe = load_pipeline(config.model, decode=config.decodes, linear=_linear(group))
        lines: list[str] = []
        for row in group:
            check_read(pipe, row.resolved.config, (job.prompt for job in row.jobs), lines.append)
        for line in dict.fromkeys(lines):
            observer.note(line)
        worker = _Worker(pipe, observer, warmup_steps)
        left += len(jobs)
        with closing(claim_each(jobs, lambda pair: tried.claim(pair[1]))) as claims:
            for (row, job), claimed in claims:
                observer.video(number, f"{row.row.name}: {job.prompt}", job.seed)
                worker.attempt(row, job, claimed)
                number, left = number + 1, left - 1
        del pipe, worker
        _free_memory()
    return left


def _groups(rows: Sequence[PlannedRow]) -> list[list[PlannedRow]]:
    """Rows that share a loaded pipeline."""
    groups: dict[tuple[ModelConfig, bool], list[PlannedRow]] = {}
    for row in rows:
        config = row.resolved.config
        groups.setdefault((config.model, config.decodes), []).append(row)
    return list(groups.values())


def _linear(group: Sequence[PlannedRow]) -> str:
    """The precision of the linear layers that a pipeline is loaded for: FP8 if no row needs another."""
    return "fp8" if all(row.fp8 for row in group) else "model"


@dataclass(frozen=True)
class _Reason:
    """Why a run failed: only text, because an exception would keep the tensors of its frames alive."""

    message: str
    hint: str | None
    hopeless: bool
    tried: bool = True

    @classmethod
    def of(cls, error: Exception) -> _Reason:
        if isinstance(error, AdaspaError):
            return cls(error.message, by_keys(error.hint), isinstance(error, UsageError | OutOfMemoryError))
        return cls(f"{type(error).__name__}: {' '.join(str(error).split())}", None, hopeless=False)


class _Tried:
    """Which runs other processes have tried since this one began: what failed there is not tried again here."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._before = {job.place: _modified(failure_path(job)) for job in jobs}

    def claim(self, job: Job) -> ClaimedPlace | None:
        """Claim a run; None if another process is making it, or has made or tried it."""
        claimed = claim(job, resume=True)
        if claimed is not None and _modified(failure_path(job)) != self._before[job.place]:
            claimed.give_back()
            return None
        return claimed

    def is_open(self, job: Job) -> bool:
        """Whether a run could be claimed; makes no folder."""
        if not job.place.parent.is_dir():
            return True
        claimed = self.claim(job)
        if claimed is not None:
            claimed.give_back()
        return claimed is not None


def _modified(path: Path) -> int | None:
    """When a file was written; None if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


class _Worker:
    """Makes runs with one pipeline, and remembers which rows are warm and which are hopeless."""

    def __init__(self, pipe: Any, observer: BenchObserver, warmup_steps: int) -> None:
        self._pipe, self._observer, self._warmup_steps = pipe, observer, warmup_steps
        self._warm: set[str] = set()
        self._hopeless: dict[str, _Reason] = {}

    def attempt(self, row: PlannedRow, job: Job, claimed: ClaimedPlace) -> None:
        """Make a run; if it fails, record why. A row that cannot run at all is tried once."""
        name = row.row.name
        if name in self._hopeless:
            _record(row, job, dataclasses.replace(self._hopeless[name], tried=False))
            return
        failure = self._try(row, job, claimed)
        if failure is None:
            failure_path(job).unlink(missing_ok=True)
            return
        _record(row, job, failure)
        self._observer.failed(name, failure.message)
        if failure.hopeless:
            self._hopeless[name] = failure
        self._pipe.maybe_free_model_hooks()
        _free_memory()

    def _try(self, row: PlannedRow, job: Job, claimed: ClaimedPlace) -> _Reason | None:
        try:
            with memory_errors(row.resolved.config):
                self._warm_up(row, job)
                with session(self._pipe, row.resolved, self._observer) as at_work:
                    make(at_work, job, claimed)
        except DiskFullError:
            raise  # the next run would fill it as well
        except Exception as error:
            return _Reason.of(error)
        return None

    def _warm_up(self, row: PlannedRow, job: Job) -> None:
        if not self._warmup_steps or row.row.name in self._warm:
            return
        warm_up(self._pipe, row.resolved, self._warmup_steps, job.prompt, job.seed)
        self._warm.add(row.row.name)


def _record(row: PlannedRow, job: Job, failure: _Reason) -> None:
    prepare_folder(str(job.place.parent))
    record = Failure(
        fingerprint=job.fingerprint,
        prompt=job.prompt,
        seed=job.seed,
        error=failure.message,
        hint=failure.hint,
        tried=failure.tried,
        settings=row.resolved.flat(),
    )
    write_json(failure_path(job), record.as_json(), replace=True)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

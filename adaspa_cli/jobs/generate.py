"""Every prompt with every seed through one pipeline: a video and a report each.

The name of each video is claimed before it is computed, so several processes may write to one folder. Those that run
with ``resume`` share the work: none makes what another is making. A process with a shard keeps to its share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, TypeVar

from adaspa_cli.config import GenerateConfig, ModelConfig, Resolved
from adaspa_cli.distributed.world import World
from adaspa_cli.files.folders import prepare_folder
from adaspa_cli.jobs.follow import placed
from adaspa_cli.jobs.places import ClaimedPlace, claim_place, video_name
from adaspa_cli.jobs.plan import Job, plan
from adaspa_cli.jobs.prompts import collect_prompts
from adaspa_cli.jobs.shard import Shard
from adaspa_cli.jobs.write import Made, complete, write_result
from adaspa_cli.maskfiles.check import check_name, open_masks
from adaspa_cli.models.fp8_linear import check_fp8
from adaspa_cli.models.loading import choose_device, load_pipeline
from adaspa_cli.models.registry import check_read
from adaspa_cli.quality.by_frame import Comparing, silent
from adaspa_cli.sampling.memory import memory_errors
from adaspa_cli.sampling.run import Observer, Session, session

Item = TypeVar("Item")


class Load(Protocol):
    """Loads a pipeline; see :func:`~adaspa_cli.models.loading.load_pipeline`."""

    def __call__(self, config: ModelConfig, *, decode: bool, linear: str) -> Any: ...


class JobObserver(Observer, Protocol):
    """Is notified of the progress of jobs."""

    def skipped(self, video: Path) -> None: ...
    def elsewhere(self, video: Path) -> None: ...
    def comparing(self, done: int, frames: int) -> None: ...


def generate(
    resolved: Resolved,
    observer: JobObserver,
    prompts: Sequence[str] | None = None,
    shard: Shard | None = None,
    world: World | None = None,
    load: Load = load_pipeline,
) -> Iterator[Made]:
    """Make the videos of a run, and yield each once it is complete, also those that were complete before.

    With ``resume``, videos that another process is making are left to it.

    Args:
        prompts: what :func:`collect_prompts` gave, if it was called before: a pipe can be read only once.
        shard: the share of the videos to make; it goes with ``resume``, whatever the settings say.
        world: processes that make each video together, led by this one; others :func:`~adaspa_cli.jobs.follow.follow`.
        load: gives the pipeline of a model, ready to run: one that was used before may serve again.

    Raises:
        AdaspaError: see :func:`plan`, :func:`load_pipeline` and :func:`check_read`.
        RunError: the model produced values that are not finite.
        OutOfMemoryError: the device's memory does not suffice.
        DiskFullError: the disk is full; nothing of the last video is left.
    """
    if shard is not None:
        resolved = resuming(resolved)
    config, world = resolved.config, World() if world is None else world
    prompts = collect_prompts(config.prompts) if prompts is None else prompts
    jobs = _own(plan(resolved, prompts), shard)
    todo = [number for number, job in enumerate(jobs) if not job.complete]
    yield from skip_complete(jobs, observer)
    if not todo:
        world.tell(False)
        return
    model = placed(config.model, world)
    check_masks(config)
    if config.method.linear == "fp8":
        check_fp8(choose_device(model.device))
    world.tell(True)
    observer.loading(config.model.source)
    made: set[int] = set()
    with memory_errors(config, together=not world.teams.all.alone):
        pipe = load(model, decode=config.decodes, linear=config.method.linear)
        check_read(pipe, config, (jobs[number].prompt for number in todo), observer.note)
        with session(pipe, resolved, observer, world) as running:
            observer.started(len(todo), config.sampling.steps, running.handle.backend)
            with closing(claim_each(todo, lambda number: claim(jobs[number], resume=config.output.resume))) as claims:
                for number, claimed in claims:
                    job = jobs[number]
                    observer.video(len(made), job.prompt, job.seed)
                    made.add(number)
                    yield make(running, job, claimed, observer.comparing)
            world.tell(None)
    if len(made) < len(todo):
        updated = _own(plan(resolved, prompts), shard)
        left = [updated[number] for number in todo if number not in made]
        yield from skip_complete(left, observer)
        for job in left:
            if not job.complete:
                observer.elsewhere(job.place)


def resuming(resolved: Resolved) -> Resolved:
    """The same run, with ``resume``."""
    output = dataclasses.replace(resolved.config.output, resume=True)
    return dataclasses.replace(resolved, config=dataclasses.replace(resolved.config, output=output))


def _own(jobs: list[Job], shard: Shard | None) -> list[Job]:
    """The jobs of this process, of all that the whole run has."""
    return jobs if shard is None else shard.take(jobs)


def skip_complete(jobs: Sequence[Job], observer: JobObserver) -> Iterator[Made]:
    """Yield the videos of the jobs that are complete, and tell the observer that they are skipped; those that are to be
    compared with other runs are."""
    for job in jobs:
        if job.complete:
            observer.skipped(job.place)
            yield complete(job, observer.comparing)


def check_masks(config: GenerateConfig) -> None:
    """Read the whole mask file, if there is one, before anything slow begins; raises MaskFileError."""
    masks = open_masks(config.method)
    if masks is not None:
        check_name(masks, config.model)
        for _ in masks.verify():
            pass


def claim(job: Job, *, resume: bool) -> ClaimedPlace | None:
    """Claim the place of a job; see :func:`~adaspa_cli.jobs.places.claim_place`."""
    prepare_folder(str(job.place.parent))
    return claim_place(job.place, video_name(job.prompt, job.seed), job.fingerprint, resume=resume)


def claim_each(
    items: Sequence[Item], claim: Callable[[Item], ClaimedPlace | None]
) -> Generator[tuple[Item, ClaimedPlace]]:
    """Claim one item after another, and hold each until the next is requested.

    Items that another process holds are tried again at the end, in case it was interrupted, until none can be claimed.
    """
    left, claimed_any = list(items), True
    while left and claimed_any:
        held_by_others, claimed_any = [], False
        for item in left:
            place = claim(item)
            if place is None:
                held_by_others.append(item)
                continue
            with place:
                yield item, place
            claimed_any = True
        left = held_by_others


def make(running: Session, job: Job, claimed: ClaimedPlace, comparing: Comparing = silent) -> Made:
    """Make one video, and write it and its report.

    Args:
        comparing: see :func:`~adaspa_cli.jobs.write.write_result`.

    Raises:
        AdaspaError: see :meth:`~adaspa_cli.sampling.run.Session.run`.
        OutputError: a file cannot be written.
        DiskFullError: the disk is full; nothing of this video is left.
    """
    result = running.run(job.prompt, job.seed)
    if claimed.is_free():
        return write_result(result, job, claimed, comparing)
    other = claim(job, resume=False)  # a program that ignores claims took the name: keep the result under another
    assert other is not None
    with other:
        return write_result(result, job, other, comparing)

"""``generate --ray``: the videos of a run made by workers of Ray, on one machine or on many.

A worker is a process with a GPU of its own and a loaded pipeline. It makes a video in a temporary folder and sends the
files back; the driver, which holds the claim of the name, writes them. So no folder needs to be shared, and a video
whose worker died is made again by another, and written once.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from adaspa_cli.config import Resolved
from adaspa_cli.errors import AdaspaError, BackendError, RunError, UsageError
from adaspa_cli.jobs.generate import JobObserver, check_masks, claim, skip_complete
from adaspa_cli.jobs.places import ClaimedPlace
from adaspa_cli.jobs.plan import Job, plan
from adaspa_cli.jobs.ray_worker import Sent, Worker
from adaspa_cli.jobs.write import Made, write_files

LOCAL = "local"
_ATTEMPTS = 3  # at one video, each by another worker
_PATIENCE = 0.5  # seconds between two looks at Ctrl-C
_ANSWER = 5.0  # seconds that a cluster has to answer
_STORE = 2**30  # bytes of a local Ray's object store: videos on their way


@dataclass(frozen=True)
class Cluster:
    """Where workers run.

    Attributes:
        address: of a Ray cluster, ``auto`` for the one that runs on this machine, or ``local`` to start one here.
        workers: how many; None is one for each GPU, and a single one where there is none.
    """

    address: str = LOCAL
    workers: int | None = None


class RayObserver(JobObserver, Protocol):
    """Is notified of the progress of a run on Ray."""

    def workers(self, number: int, kind: str) -> None: ...
    def lost(self, video: Path) -> None: ...


def generate_on_ray(
    resolved: Resolved, observer: RayObserver, prompts: Sequence[str], cluster: Cluster
) -> Iterator[Made]:
    """Make the videos of a run, and yield each once it is complete, also those that were complete before; in no order.

    Workers read models, mask files and pictures by the same path as the driver.

    Raises:
        AdaspaError: as :func:`~adaspa_cli.jobs.generate.generate`, and below.
        ImportError: Ray is not installed.
        UsageError: there is no cluster at the address.
        BackendError: the cluster has too few GPUs or CPUs.
        RunError: three workers died at one video.
    """
    import ray

    jobs = plan(resolved, prompts)
    yield from skip_complete(jobs, observer)
    todo = [job for job in jobs if not job.complete]
    if not todo:
        return
    check_masks(resolved.config)
    with _connected(ray, cluster.address):
        number, kind = _workers(ray.cluster_resources(), cluster, resolved.config.model.device)
        pool = _Pool(ray, resolved, min(number, len(todo)), kind)
        observer.workers(len(pool.idle), kind)
        observer.started(len(todo), resolved.config.sampling.steps, None)
        with pool:
            yield from _dispatch(pool, todo, resolved, observer)


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Connect to a cluster, or start one, unless the program that calls is connected already."""
    if ray.is_initialized():
        yield
        return
    _check_reachable(address)
    settings = {"include_dashboard": False, "object_store_memory": _STORE} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **settings)
    except (ConnectionError, ValueError, TimeoutError, RuntimeError) as error:
        raise _no_cluster(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse a host and port without a listener: Ray would keep trying for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> UsageError:
    return UsageError(
        f"cannot connect to Ray at '{address}': {' '.join(str(error).split())}",
        hint="start one with `ray start --head`, or use --ray local",
    )


def _workers(resources: dict[str, float], cluster: Cluster, device: str) -> tuple[int, str]:
    """How many workers there are, and what each of them holds: a ``GPU`` or a ``CPU``."""
    gpus = int(resources.get("GPU", 0))
    if device == "cuda" and not gpus:
        raise BackendError("--device cuda: the Ray cluster has no GPU", hint="use --device auto")
    kind = "GPU" if gpus and device != "cpu" else "CPU"
    there = int(resources.get(kind, 0))
    number = cluster.workers or (gpus if kind == "GPU" else 1)
    if number > there:
        raise BackendError(f"--ray-workers {number}: the Ray cluster has {there} {kind}s, and a worker takes one")
    return number, kind


class _Pool:
    """Workers; also a context manager that ends them.

    Attributes:
        idle: those that have nothing to do.
    """

    def __init__(self, ray: Any, resolved: Resolved, number: int, kind: str) -> None:
        self.ray, self._resolved = ray, resolved
        options = {"num_cpus": 1, "num_gpus": 1 if kind == "GPU" else 0, "max_restarts": 0}
        self._start = ray.remote(**options)(Worker).remote
        self._all: list[Any] = []
        self.idle: list[Any] = [self.start() for _ in range(number)]

    def start(self) -> Any:
        """Start a worker; what goes wrong with it is told by its first video."""
        worker = self._start(self._resolved)
        self._all.append(worker)
        return worker

    def end(self, worker: Any) -> None:
        """End a worker, if it is alive."""
        self._all.remove(worker)
        self.ray.kill(worker)

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in list(self._all):
            self.end(worker)


@dataclass
class _Task:
    """A video that is to be made, under a name that is claimed."""

    job: Job
    claimed: ClaimedPlace
    attempts: int = 0


def _dispatch(pool: _Pool, todo: Sequence[Job], resolved: Resolved, observer: RayObserver) -> Iterator[Made]:
    """Give workers the videos, one at a time, and write what comes back."""
    waiting, again = deque(todo), deque[_Task]()
    running: dict[Any, tuple[Any, _Task]] = {}
    noted: set[str] = set()
    with ExitStack() as claims:
        begun = 0
        while waiting or again or running:
            while pool.idle and (waiting or again):
                task = again.popleft() if again else _claimed(waiting.popleft(), resolved, observer)
                if task is None:
                    continue
                if not task.attempts:
                    claims.enter_context(task.claimed)
                    observer.video(begun, task.job.prompt, task.job.seed)
                    begun += 1
                worker = pool.idle.pop()
                task.attempts += 1
                running[worker.make.remote(task.job, task.claimed.video.name)] = worker, task
            ready = pool.ray.wait(list(running), timeout=_PATIENCE)[0] if running else ()
            observer.phase(f"{len(running)} at once")
            for reference in ready:
                worker, task = running.pop(reference)
                sent = _received(pool, reference)
                if sent is None:
                    _replace(pool, worker, task, observer)
                    again.append(task)
                    continue
                pool.idle.append(worker)
                for line in (line for line in sent.notes if line not in noted):
                    observer.note(line)
                noted.update(sent.notes)
                yield write_files(sent.report, sent.files, task.job, task.claimed, observer.comparing)
                task.claimed.give_back()
                for step in range(resolved.config.sampling.steps):
                    observer.step_done(step)


def _claimed(job: Job, resolved: Resolved, observer: RayObserver) -> _Task | None:
    """Claim the name of a video; None if another process is making it or has made it."""
    claimed = claim(job, resume=resolved.config.output.resume)
    if claimed is None:
        observer.elsewhere(job.place)
        return None
    return _Task(job, claimed)


def _received(pool: _Pool, reference: Any) -> Sent | None:
    """What a worker sent; None if it died. Raises the AdaspaError that ended its work."""
    errors = pool.ray.exceptions
    try:
        result: Sent | AdaspaError = pool.ray.get(reference)
    except errors.RayTaskError as error:
        raise RunError(f"a worker failed: {' '.join(str(error).split())[-300:]}") from error
    except errors.RayError:
        return None
    if isinstance(result, AdaspaError):
        raise result
    return result


def _replace(pool: _Pool, worker: Any, task: _Task, observer: RayObserver) -> None:
    """Start a worker instead of one that died; raises RunError if too many died at the same video."""
    pool.end(worker)
    if task.attempts >= _ATTEMPTS:
        raise RunError(
            f"{task.attempts} workers died while they made {task.claimed.video.name}",
            hint="Ray's logs say why, in /tmp/ray/session_latest/logs; too little memory is the usual reason",
        )
    observer.lost(task.claimed.video)
    pool.idle.append(pool.start())

"""From kernels on a timeline to what each kind of work took of a step. Times in microseconds, as they are recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scripts.profile_steps.classes import CLASSES, classify


class Kernel(NamedTuple):
    """One launch, a copy or a fill included, in microseconds."""

    name: str
    start: float
    end: float


class Window(NamedTuple):
    """What ran between two marks, and when they ended and began."""

    start: float
    end: float
    kernels: list[Kernel]


@dataclass(frozen=True)
class KernelTime:
    """All launches of one kernel in a step."""

    name: str
    kind: str
    launches: int
    milliseconds: float


@dataclass(frozen=True)
class StepTimes:
    """Where the time of one step went.

    Attributes:
        span: milliseconds from the mark before the step to the one after it.
        work: milliseconds that the kernels of each class took.
        gaps: milliseconds of the span in which nothing ran.
        overlap: milliseconds that stand in ``work`` twice, because kernels ran at once: ``work`` and ``gaps`` add up
            to ``span`` and ``overlap``.
        kernels: by name, the most expensive first.
    """

    span: float
    work: dict[str, float]
    gaps: float
    overlap: float
    kernels: list[KernelTime]

    @property
    def launches(self) -> int:
        """Kernels, copies and fills."""
        return sum(kernel.launches for kernel in self.kernels)


def windows(kernels: Iterable[Kernel], is_mark: Callable[[str], bool]) -> list[Window]:
    """Cut a timeline at its marks: one window fewer than there are marks. What begins before the first is left out."""
    found: list[Window] = []
    begun: float | None = None
    inside: list[Kernel] = []
    for kernel in sorted(kernels, key=lambda kernel: kernel.start):
        if not is_mark(kernel.name):
            inside.append(kernel)
            continue
        if begun is not None:
            found.append(Window(begun, kernel.start, inside))
        begun, inside = kernel.end, []
    return found


def step_times(window: Window) -> StepTimes:
    """What each class took; of kernels that reach out of the window the part inside it."""
    inside = [
        Kernel(name, max(start, window.start), max(window.start, min(end, window.end)))
        for name, start, end in window.kernels
    ]
    by_name: dict[str, list[float]] = {}
    for name, start, end in inside:
        by_name.setdefault(name, []).append((end - start) / 1000)
    kernels = [KernelTime(name, classify(name), len(took), sum(took)) for name, took in by_name.items()]
    kernels.sort(key=lambda kernel: (-kernel.milliseconds, kernel.name))
    work = {kind: sum(kernel.milliseconds for kernel in kernels if kernel.kind == kind) for kind in CLASSES}
    busy, span = _union(inside) / 1000, (window.end - window.start) / 1000
    return StepTimes(span, work, span - busy, sum(work.values()) - busy, kernels)


def _union(kernels: Sequence[Kernel]) -> float:
    """Length of the time in which at least one runs; what runs at once counts once."""
    length, until = 0.0, float("-inf")
    for _, start, end in sorted(kernels, key=lambda kernel: kernel.start):
        length += max(0.0, end - max(start, until))
        until = max(until, end)
    return length

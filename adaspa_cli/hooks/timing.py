"""Times that do not disturb what they measure: CUDA events on a GPU, a monotonic clock elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Span:
    """A stretch of time; on a GPU its ends are events, so that reading it waits for them but taking it does not."""

    start: float | torch.cuda.Event
    end: float | torch.cuda.Event

    def seconds(self) -> float:
        """Length in seconds."""
        if isinstance(self.start, float) and isinstance(self.end, float):
            return self.end - self.start
        assert isinstance(self.start, torch.cuda.Event)
        assert isinstance(self.end, torch.cuda.Event)
        self.end.synchronize()
        return float(self.start.elapsed_time(self.end)) / 1000


def now(device: torch.device) -> float | torch.cuda.Event:
    """A point in the device's time."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


class Stopwatch:
    """``with Stopwatch(device) as watch: ...``, then ``watch.span``."""

    span: Span

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> Stopwatch:
        self._start = now(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        self.span = Span(self._start, now(self._device))

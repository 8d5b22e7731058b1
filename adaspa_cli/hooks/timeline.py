"""Where the time of a run goes: text encoding, each denoising step, decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from adaspa_cli.hooks.clock import Listener, Order, StepClock
from adaspa_cli.hooks.override import Override
from adaspa_cli.hooks.timing import Span, Stopwatch, now


class Timeline:
    """Takes times on one pipeline instance between :meth:`start` and :meth:`stop`.

    Attributes:
        text: spans of text encoding.
        steps: one span per denoising step; the first begins when the timesteps are set.
        decode: spans of the VAE.
    """

    def __init__(self, pipe: Any, clock: StepClock, on_decode: Callable[[], None] = lambda: None) -> None:
        """``on_decode`` is called when the VAE begins."""
        self._device: torch.device = pipe._execution_device
        self.text: list[Span] = []
        self.steps: list[Span] = []
        self.decode: list[Span] = []
        self._overrides = [Override(pipe, "encode_prompt", self._timed(lambda: self.text))]
        if pipe.vae is not None:
            self._overrides.append(Override(pipe.vae, "decode", self._timed(lambda: self.decode, on_decode)))
        clock.listen(Listener(Order.TIMES, start=self._begin, step_end=self._end_step))

    def _timed(
        self, spans: Callable[[], list[Span]], announce: Callable[[], None] = lambda: None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def timed(*args: Any, **kwargs: Any) -> Any:
                announce()
                with Stopwatch(self._device) as watch:
                    result = original(*args, **kwargs)
                spans().append(watch.span)
                return result

            return timed

        return wrap

    def start(self) -> None:
        """Forget the video before."""
        self.text, self.steps, self.decode = [], [], []

    def _begin(self, _steps: int) -> None:
        self._mark = now(self._device)

    def _end_step(self, _step: int) -> None:
        end = now(self._device)
        self.steps.append(Span(self._mark, end))
        self._mark = end

    def stop(self) -> None:
        """Restore the pipeline's own methods."""
        for override in self._overrides:
            override.restore()

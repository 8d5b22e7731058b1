"""A metric of a video; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Measurement:
    """A metric of one video: its value (mean over frames), or the reason why there is none."""

    value: float | None
    reason: str | None = field(default=None, metadata={"absent": True})  # no key in JSON where there is a value

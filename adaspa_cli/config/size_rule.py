"""Which sizes of video a model makes. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from adaspa_cli.errors import ConfigError


@dataclass(frozen=True)
class SizeRule:
    """Which sizes of video a model makes.

    Attributes:
        multiple: height and width in pixels are multiples of it.
        frame_period: the model makes a multiple of it, and one more frame.
        largest: greatest height and width; None where there is no limit.
        only: the one height and width that the model makes; None where there are others.
    """

    multiple: int
    frame_period: int
    largest: tuple[int, int] | None = None
    only: tuple[int, int] | None = None

    def check(self, height: int, width: int, frames: int) -> None:
        """Raise ConfigError, with the nearest valid value, for a size that the model does not make."""
        for key, value in (("height", height), ("width", width)):
            if value % self.multiple:
                valid = max(self.multiple, round(value / self.multiple) * self.multiple)
                raise ConfigError(f"{key} must be a multiple of {self.multiple}, got {value}", hint=f"nearest: {valid}")
        period = self.frame_period
        if (frames - 1) % period:
            valid = max(0, round((frames - 1) / period)) * period + 1
            raise ConfigError(f"the model makes {period}k + 1 frames, got {frames}", hint=f"nearest: {valid}")
        if self.largest is not None and (height > self.largest[0] or width > self.largest[1]):
            most = f"{self.largest[0]} x {self.largest[1]}"
            raise ConfigError(f"the model makes at most {most} pixels, got {height} x {width}")
        if self.only is not None and (height, width) != self.only:
            raise ConfigError(f"the model makes {self.only[0]} x {self.only[1]} pixels only, got {height} x {width}")

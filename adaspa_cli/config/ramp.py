"""Sparsity by step: one number for the whole run, or a ramp.

``0.95`` is one sparsity. ``{0: 0.5, 8%: 0.7, 20%: 0.95}`` in YAML, or ``0:0.5,8%:0.7,20%:0.95`` as a flag, is a ramp:
0.5 from step 0 on, 0.7 from the first step on at which 8 % of the run are over, and so on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from adaspa_cli.errors import ConfigError

_HINT = "0.95, or {0: 0.5, 8%: 0.7, 20%: 0.95}; as a flag: 0:0.5,8%:0.7,20%:0.95"


@dataclass(frozen=True)
class RampStart:
    """A sparsity and when it begins: at a denoising step, or once a share of the run is over.

    Attributes:
        sparsity: γ in [0, 1).
        step: 0-based; None where ``percent`` says it.
        percent: of the run, in [0, 100], as it was written.
    """

    sparsity: float
    step: int | None = None
    percent: str | None = None

    def first_step(self, steps: int) -> int:
        """The first step of a run of ``steps`` steps at which it holds."""
        if self.percent is None:
            return self.step or 0
        return -(-Fraction(self.percent) * steps // 100)

    def key(self) -> str:
        """As in YAML."""
        return f"{self.step}" if self.percent is None else f"{self.percent}%"


@dataclass(frozen=True)
class SparsityRamp:
    """Sparsities in the order in which they begin; the first begins with the run."""

    starts: tuple[RampStart, ...]

    @classmethod
    def parse(cls, value: object, origin: str = "sparsity") -> SparsityRamp:
        """Read a number, a mapping as YAML has it, or a text as a flag has it.

        Raises:
            ConfigError: none of them, a sparsity outside of [0, 1), a start that is no step and no share of the run,
                two that are the same, or none at the beginning.
        """
        pairs = _pairs(value, origin)
        starts = tuple(_start(key, sparsity, origin) for key, sparsity in pairs)
        keys = [start.key() for start in starts]
        if len(set(keys)) < len(keys):
            raise ConfigError(f"{origin}: two sparsities begin at {_repeated(keys)}", hint=_HINT)
        if all(start.first_step(1) for start in starts):
            raise ConfigError(f"{origin}: no sparsity begins at step 0", hint=_HINT)
        return cls(starts)

    def at(self, step: int, steps: int) -> float:
        """γ at a 0-based step of a run of ``steps`` steps; of two that begin at the same step the last one holds."""
        begun = [(start.first_step(steps), place) for place, start in enumerate(self.starts)]
        return self.starts[max(pair for pair in begun if pair[0] <= step)[1]].sparsity

    def changes(self, steps: int) -> tuple[int, ...]:
        """The steps of a run at which γ is another than at the step before, ascending."""
        values = [self.at(step, steps) for step in range(steps)]
        return tuple(step for step in range(1, steps) if values[step] != values[step - 1])

    @property
    def constant(self) -> bool:
        """Whether it is one number for the whole run."""
        return len({start.sparsity for start in self.starts}) == 1

    def __str__(self) -> str:
        """As a flag has it; :meth:`parse` reads it."""
        if self.constant:
            return f"{self.starts[0].sparsity!r}"
        return ",".join(f"{start.key()}:{start.sparsity!r}" for start in self.starts)


def _repeated(keys: list[str]) -> str:
    return next(key for key in keys if keys.count(key) > 1)


def _pairs(value: object, origin: str) -> list[tuple[object, object]]:
    if isinstance(value, Mapping) and value:
        return list(value.items())
    if isinstance(value, str):
        if ":" not in value:
            return [(0, value)]
        parts = [part.split(":") for part in value.split(",")]
        if all(len(part) == 2 for part in parts):
            return [(key, sparsity) for key, sparsity in parts]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return [(0, value)]
    raise ConfigError(f"{origin} must be a number or sparsities by step, got {value!r}", hint=_HINT)


def _start(key: object, sparsity: object, origin: str) -> RampStart:
    try:
        if isinstance(sparsity, bool):
            raise TypeError
        share = float(sparsity)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ConfigError(f"{origin} must be a number, got {sparsity!r}", hint=_HINT) from None
    if not 0 <= share < 1:
        raise ConfigError(f"{origin} must lie in [0, 1), got {share}", hint="0.8 leaves out 80 % of the blocks")
    text = str(key).strip()
    if re.fullmatch(r"\d+", text) and not isinstance(key, bool):
        return RampStart(share, step=int(text))
    if re.fullmatch(r"\d+(\.\d+)?%", text) and Fraction(text[:-1]) <= 100:
        return RampStart(share, percent=text[:-1])
    raise ConfigError(f"{origin}: a sparsity begins at a step or a share of the run, not at {text!r}", hint=_HINT)

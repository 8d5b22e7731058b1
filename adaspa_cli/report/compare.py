"""The run that a video is shown beside: found by the report that the user names, and checked to be comparable."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaspa_cli.config.schema import GenerateConfig, SamplingConfig
from adaspa_cli.errors import ConfigError, ReportError, shortened
from adaspa_cli.report.dense_run import as_typed
from adaspa_cli.report.schema import Report, read_report

_HINT = "--compare-with takes the NAME.report.json of a run of the same model, prompt, seed and size"
# What two videos must share, so that only the method differs.
_SHARED = [f.name for f in dataclasses.fields(SamplingConfig) if f.name not in ("seed", "fps", "steps_per_phase")]


@dataclass(frozen=True)
class Compared:
    """Another run's report, and its video if it ended in one."""

    report: Report
    video: Path | None


def load_compared(
    files: Sequence[str], wanted: Collection[tuple[str, int]], config: GenerateConfig
) -> dict[tuple[str, int], Compared]:
    """Read the named reports, by (prompt, seed).

    Args:
        files: reports.
        wanted: prompts and seeds of this run; a report of another is an error.
        config: of this run; what decides the noise and the size must be the same.

    Raises:
        ReportError: a file is no report that can be read.
        ConfigError: a report is of another prompt, seed, model or size, or its video is not there.
    """
    found: dict[tuple[str, int], Compared] = {}
    for file in files:
        path = Path(file).expanduser()
        report = _read(path)
        key = (report.prompt, report.seed)
        if key not in wanted:
            raise ConfigError(f"{path} is of {_named(key)}, which this run does not make")
        if key in found:
            raise ConfigError(f"{path} is the second report of {_named(key)}")
        _check_same(path, report, config)
        name = report.video.file
        video = None if name is None else path.parent / name
        if video is not None and not video.is_file():
            raise ConfigError(f"the video of {path} is not there: {video}")
        found[key] = Compared(report, video)
    return found


def _named(key: tuple[str, int]) -> str:
    return f"the prompt '{shortened(key[0])}' with seed {key[1]}"


def _read(path: Path) -> Report:
    try:
        return read_report(path)
    except ReportError as error:
        raise ReportError(error.message, hint=error.hint or _HINT) from error


def _check_same(path: Path, report: Report, config: GenerateConfig) -> None:
    """A setting that the report is older than had its default then."""
    for part, keys in ((config.model, ("weights", "random_weights", "layers")), (config.sampling, _SHARED)):
        defaults = {field.name: field.default for field in dataclasses.fields(part)}
        both = {key: (report.setting(key, defaults[key]), getattr(part, key)) for key in keys}
        other = {key: theirs for key, (theirs, value) in both.items() if theirs != value}
        if other:
            differs = "; ".join(f"{key} is {both[key][0]} there, and {both[key][1]} here" for key in other)
            raise ConfigError(f"{path} cannot be compared: {differs}", hint=_same_as(other))


def _same_as(settings: Mapping[str, Any]) -> str:
    """How to give this run the settings of the other; where one has no value to give, what is needed."""
    typed = [as_typed(key, value) for key, value in settings.items() if value is not None]
    if len(typed) < len(settings) or not all(typed):
        return _HINT
    return f"{shlex.join(word for words in typed for word in words)}, or the report of another run"

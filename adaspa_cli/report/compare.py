"""The run that a video is shown beside: found by the report that the user names, and checked to be comparable."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaspa_cli.config.schema import GenerateConfig, SamplingConfig
from adaspa_cli.errors import ConfigError, shortened

_HINT = "--compare-with takes the NAME.report.json of a run of the same model, prompt, seed and size"
# What two videos must share, so that the method alone makes the difference.
_SHARED = [f.name for f in dataclasses.fields(SamplingConfig) if f.name not in ("seed", "fps", "steps_per_phase")]


@dataclass(frozen=True)
class Compared:
    """Another run's report, and its video if it ended in one."""

    report: dict[str, Any]
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
        ConfigError: a file is no report, is of another prompt, seed, model or size, or its video is not there.
    """
    found: dict[tuple[str, int], Compared] = {}
    for file in files:
        path = Path(file).expanduser()
        report = _read(path)
        key = (report["prompt"], report["seed"])
        if key not in wanted:
            raise ConfigError(f"{path} is of {_named(key)}, which this run does not make")
        if key in found:
            raise ConfigError(f"{path} is the second report of {_named(key)}")
        _check_same(path, report, config)
        name = report["video"]["file"]
        video = None if name is None else path.parent / name
        if video is not None and not video.is_file():
            raise ConfigError(f"the video of {path} is not there: {video}")
        found[key] = Compared(report, video)
    return found


def _named(key: tuple[str, int]) -> str:
    return f"the prompt '{shortened(key[0])}' with seed {key[1]}"


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"cannot read the report {path}: {reason}", hint=_HINT) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}", hint=_HINT) from error
    if not isinstance(report, dict) or report.get("kind") != "adaspa latency report":
        raise ConfigError(f"{path} is no latency report", hint=_HINT)
    return report


def _check_same(path: Path, report: dict[str, Any], config: GenerateConfig) -> None:
    ours = {key: getattr(config.model, key) for key in ("weights", "random_weights", "layers")}
    ours |= {key: getattr(config.sampling, key) for key in _SHARED}
    for key, value in ours.items():
        theirs = report["settings"][key]["value"]
        if theirs != value:
            raise ConfigError(f"{path} cannot be compared: {key} is {theirs} there, and {value} here", hint=_HINT)

"""Files beside a run of a bench: what was measured of its video, and why a run failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from adaspa_cli.errors import ReportError
from adaspa_cli.files.typed_json import ABSENT
from adaspa_cli.quality.measurement import Measurement
from adaspa_cli.report.versioned import Versioned, read_versioned

Record = TypeVar("Record", "Quality", "Failure")


@dataclass(frozen=True, kw_only=True)
class Quality(Versioned):
    """``NAME.quality.json``: metrics of a video against the dense one.

    Attributes:
        fingerprint, reference_fingerprint: of the two videos; None without a dense one.
        identical_frames: frames that do not differ: their PSNR is a convention.
        vbench_dimensions: scores of VBench by dimension.
    """

    kind: str = "adaspa quality"
    fingerprint: str
    reference_fingerprint: str | None
    report: str
    reference_report: str | None
    versions: Mapping[str, str]
    metrics: Mapping[str, Measurement]
    identical_frames: int | None = field(default=None, metadata=ABSENT)
    vbench_dimensions: Mapping[str, float] | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True, kw_only=True)
class Failure(Versioned):
    """``NAME.failure.json``: why a run failed; ``tried`` is False where an earlier one showed that it cannot work."""

    kind: str = "adaspa failed run"
    fingerprint: str
    prompt: str
    seed: int
    error: str
    hint: str | None
    tried: bool
    settings: Mapping[str, Any]


def read_record(kind: type[Record], path: Path) -> Record | None:
    """A record, or None where there is none of this kind and format that can be read."""
    try:
        return read_versioned(kind, path)
    except ReportError:
        return None

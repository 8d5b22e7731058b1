"""Files that stand beside a run of a bench: what was measured of its video, and why a run failed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from adaspa_cli.quality.video_metrics import Measurement
from adaspa_cli.report.typed_json import ABSENT, from_json

Record = TypeVar("Record", "Quality", "Failure")


@dataclass(frozen=True, kw_only=True)
class Quality:
    """``NAME.quality.json``: metrics of a video against the dense one.

    Attributes:
        fingerprint, reference_fingerprint: of the two videos; None without a dense one.
        identical_frames: frames that do not differ: their PSNR is a convention.
        vbench_dimensions: scores of VBench by dimension.
    """

    format: int = 1
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
class Failure:
    """``NAME.failure.json``: why a run failed; ``tried`` is False where an earlier one showed that it cannot work."""

    format: int = 1
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
        record = from_json(kind, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    return record if (record.format, record.kind) == (kind.format, kind.kind) else None

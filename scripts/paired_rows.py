"""Rows of a bench against one of them, video by video: paired differences with their standard errors.

    python -m scripts.paired_rows tiny-plus --against "adaspa sparsity={sparsity}"

Needs the bench's ``bench.json`` and the reports and qualities of its runs. *Work* is the mean density of all attention
calls, dense ones counted as 1 and those that a cache skips as 0, and what summaries and probes cost. *Error* is the
runs' own estimate of their attention error after repair.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from adaspa_cli.bench.records import Quality
from adaspa_cli.bench.schema import read_bench
from adaspa_cli.bench.spec import Row
from adaspa_cli.report.schema import read_report
from adaspa_cli.report.versioned import read_versioned

Place = tuple[str, int]  # prompt, seed


@dataclass(frozen=True)
class Video:
    """PSNR against the dense video, the work of attention, and the error that the run estimated."""

    psnr: float
    work: float
    error: float | None


def videos(folder: Path, seeds: Collection[int] | None = None) -> dict[Place, Video]:
    """The measured videos of a row's folder, of some seeds or of all."""
    found = {}
    for path in sorted(folder.glob("*.quality.json")):
        psnr = read_versioned(Quality, path).metrics.get("psnr")
        report = read_report(path.with_name(path.name.replace(".quality.json", ".report.json")))
        if psnr is not None and psnr.value is not None and (seeds is None or report.seed in seeds):
            made_up, skipped = report.compensation, (report.cache and report.cache.skipped) or 0.0
            work = ((report.density or 0.0) + (made_up.work if made_up else 0.0)) * (1 - skipped)
            found[report.prompt, report.seed] = Video(psnr.value, work, made_up and made_up.after)
    return found


def paired(mine: Mapping[Place, Video], yours: Mapping[Place, Video]) -> tuple[float, float, int] | None:
    """Mean difference in dB, its standard error, and of how many videos; None of fewer than two."""
    both = [mine[place].psnr - yours[place].psnr for place in mine if place in yours]
    if len(both) < 2:
        return None
    return statistics.fmean(both), statistics.stdev(both) / math.sqrt(len(both)), len(both)


def table(bench: Path, against: str, seeds: Collection[int] | None = None) -> list[str]:
    """Lines of Markdown; ``against`` may hold settings of a row in braces."""
    rows = read_bench(bench / "bench.json").rows
    by_name = {row.name: videos(bench / "runs" / Row(row.name, {}, "").folder, seeds) for row in rows}
    lines = [
        "| row | work | PSNR dB | against | difference dB | videos | error |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        mine, other = by_name[row.name], against.format_map(row.settings)
        if not mine:
            continue
        difference = paired(mine, by_name.get(other, {})) if other != row.name else None
        errors = [video.error for video in mine.values() if video.error is not None]
        shown = [
            row.name,
            f"{statistics.fmean(video.work for video in mine.values()):.3f}",
            f"{statistics.fmean(video.psnr for video in mine.values()):.2f}",
            other if difference else "–",
            f"{difference[0]:+.2f} ± {difference[1]:.2f}" if difference else "–",
            str(len(mine)),
            f"{statistics.fmean(errors):.1%}" if errors else "–",
        ]
        lines.append(f"| {' | '.join(shown)} |")
    return lines


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bench", type=Path, help="folder of the bench")
    parser.add_argument("--against", default="adaspa sparsity={sparsity}", help="name of the row to compare with")
    parser.add_argument("--seed", type=int, action="append", help="only videos of this seed; may be repeated")
    chosen = parser.parse_args(arguments)
    print("\n".join(table(chosen.bench, chosen.against, chosen.seed)))


if __name__ == "__main__":
    main(sys.argv[1:])

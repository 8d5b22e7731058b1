"""One video on 1, 2 and 4 GPUs of a machine: what more of them gain, and what they lose to exchanges and imbalance.

    python -m scripts.bench_gpus --gpus 1 2 4 --out bench-gpus

Each row is a run of ``adaspa generate`` with random weights, a few layers of the model at its full size and three
steps of each phase; the others count as their median (``steps_per_phase``), so one that compiles kernels does no harm.
Rows that are there are not run again. ``table.md`` gives seconds of a typical step of the most frequent phase, the
speed-up over the fewest GPUs with the same method, and of the computed steps the share of exchanges and the imbalance
of attention (slowest over mean). ``table.json`` has the seconds of every phase and computed step.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaspa_cli.files.typed_json import to_json
from adaspa_cli.files.whole import write_json
from adaspa_cli.report.schema import Report, read_report

HUNYUAN = ("--model=hunyuan", "--steps=50", "--layers=6")
PLUS = ("--method=adaspa-plus", "--sparsity=0.95", "--search-steps=0,30")
COGVIDEOX = ("--model=cogvideox", "--steps=50", "--layers=4", "--method=adaspa")
ROWS: dict[str, tuple[str, ...]] = {
    "hunyuan full": (*HUNYUAN, "--method=full"),
    "hunyuan adaspa": (*HUNYUAN, "--method=adaspa", "--sparsity=0.8"),
    "hunyuan adaspa, heads in a row": (*HUNYUAN, "--method=adaspa", "--sparsity=0.8", "--set=head_deal=even"),
    "hunyuan adaspa-plus": (*HUNYUAN, *PLUS),
    "hunyuan adaspa-plus, heads in a row": (*HUNYUAN, *PLUS, "--set=head_deal=even"),
    "cogvideox": COGVIDEOX,
    "cogvideox, branches apart": (*COGVIDEOX, "--cfg-parallel"),
}
_NEED_SEVERAL = ("heads in a row", "branches apart")  # rows that mean nothing on one GPU
_USUAL = ("--random-weights", "--steps-per-phase=3", "--prompt=a cat walks on the grass", "--quiet")


@dataclass(frozen=True)
class Run:
    """A row on so many GPUs, and its report."""

    row: str
    gpus: int
    report: Report

    def typical(self) -> tuple[str, float]:
        """The most frequent phase, and the seconds of its typical step."""
        ((phase, _),) = Counter(step.phase for step in self.report.steps).most_common(1)
        estimated = [step.seconds for step in self.report.steps if step.phase == phase and step.estimated]
        return phase, estimated[0] if estimated else self.report.steps[-1].seconds


def wanted(gpus: Sequence[int], rows: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Row and number of GPUs of each run, the most GPUs first: those are what a large machine is borrowed for."""
    for row in rows:
        for number in sorted(gpus, reverse=True):
            if number > 1 or not any(part in row for part in _NEED_SEVERAL):
                yield row, number


def make(row: str, gpus: int, out: Path, more: Sequence[str], limit: float) -> Run | None:
    """Run one row, unless its report is there; None if it fails, which is said."""
    folder = out / f"{row.replace(', ', '-').replace(' ', '-')}-{gpus}"
    found = sorted(folder.glob("*.report.json"))
    if not found:
        command = [sys.executable, "-m", "adaspa_cli", "generate", *_USUAL, *ROWS[row], *more]
        begin = time.monotonic()
        code = _code([*command, f"--gpus={gpus}", f"--out={folder}"], limit)
        took = f"{time.monotonic() - begin:.0f} s, " + ("too long" if code is None else f"exit code {code}")
        print(f"{row} on {gpus}: {took}", file=sys.stderr, flush=True)
        found = sorted(folder.glob("*.report.json"))
    return Run(row, gpus, read_report(found[0])) if found else None


def _code(command: Sequence[str], limit: float) -> int | None:
    """The exit code of a command; None if it took longer. It ends its own processes, which would keep their GPUs."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
    return None


def table(runs: Sequence[Run]) -> list[str]:
    """Lines of Markdown."""
    head = "| row | GPUs | phase | s a step | speed-up | exchanges | imbalance | GB a GPU |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for run in runs:
        phase, seconds = run.typical()
        base = _base(run, runs)
        speedup = f"{base.typical()[1] / seconds:.2f}" if base is not run else "1"
        use, peak = run.report.parallel, run.report.peak_memory.gpu_bytes
        share = "" if use is None or use.share is None else f"{use.share:.1%}"
        imbalance = "" if use is None or use.imbalance is None else f"{use.imbalance:.3f}"
        most = max(use.peak_gpu_bytes, default=None) if use is not None else peak
        memory = "" if most is None else f"{most / 1e9:.1f}"
        cells = (run.row, run.gpus, phase, f"{seconds:.3f}", speedup, share, imbalance, memory)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _base(run: Run, runs: Sequence[Run]) -> Run:
    """The fewest GPUs with the usual way of the same method."""
    usual = run.row.partition(",")[0]
    return min((other for other in runs if other.row == usual), key=lambda other: other.gpus, default=run)


def record(runs: Sequence[Run]) -> dict[str, Any]:
    """The numbers of the table and of every phase, with the machine and versions of the first run."""
    rows = []
    for run in runs:
        use, peak = run.report.parallel, run.report.peak_memory.gpu_bytes
        rows.append(
            {
                "row": run.row,
                "gpus": run.gpus,
                "flags": [*_USUAL, *ROWS[run.row]],
                "step_seconds": {step.phase: step.seconds for step in run.report.steps},  # the last one is typical
                "computed_steps": [[s.step, s.phase, s.seconds] for s in run.report.steps if not s.estimated],
                "exchanges": use and use.share,
                "imbalance": use and use.imbalance,
                "peak_gpu_bytes": [peak] if use is None else list(use.peak_gpu_bytes),
            }
        )
    first = runs[0].report
    return {"machine": to_json(first.machine), "versions": dict(first.versions), "rows": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows and print the table; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("bench-gpus"))
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for one row")
    parser.add_argument("more", nargs="*", help="further flags of adaspa generate, after --")
    given = parser.parse_args(arguments)
    asked = list(wanted(given.gpus, given.rows))
    runs: list[Run] = []
    for row, gpus in asked:
        run = make(row, gpus, given.out, given.more, given.limit)
        if run is not None:
            runs.append(run)
            (given.out / "table.md").write_text("\n".join(table(runs)) + "\n", encoding="utf-8")
            write_json(given.out / "table.json", record(runs), replace=True)
    print("\n".join(table(runs)))
    return 0 if len(runs) == len(asked) else 1


if __name__ == "__main__":
    raise SystemExit(main())

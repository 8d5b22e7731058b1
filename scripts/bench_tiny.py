"""How much faster the bundled model is with AdaSpa than with dense attention, as a user sees it: whole commands.

    python -m scripts.bench_tiny --pairs 4 --json docs/results/tiny-cpu-pairs.json
    python -m scripts.bench_tiny --first "adaspa --sparsity 0.8" --second "adaspa-plus --sparsity 0.9"

Runs ``adaspa generate`` with ``--method full`` and ``--method adaspa`` in turn, or with two other methods and their
arguments, so that a machine whose speed drifts slows both, and compares what their reports say of denoising. Arguments
after ``--`` go to both commands.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPT = "a red circle moves left on a blue background"


def generate(method: str, more: list[str]) -> dict[str, Any]:
    """Run one command: its seconds from start to end, and its report."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "adaspa_cli", "generate", "--prompt", PROMPT, "--out", out]
        command += ["--method", *shlex.split(method)]
        begin = time.perf_counter()
        subprocess.run([*command, "--quiet", *more], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
        (report,) = Path(out).glob("*.report.json")
        return {"command_seconds": round(seconds, 1), "report": json.loads(report.read_text(encoding="utf-8"))}


def main() -> None:
    """Print a line for each pair and the median; write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--first", default="full", help="a method, and arguments of its own")
    parser.add_argument("--second", default="adaspa", help="the same of the other one")
    parser.add_argument("more", nargs="*", help="arguments of both commands")
    options = parser.parse_args()
    pairs, report = [], {}
    for _ in range(options.pairs):
        pair: dict[str, Any] = {}
        for method in (options.first, options.second):
            made = generate(method, options.more)
            report = made["report"]
            pair[method] = {"command_seconds": made["command_seconds"], "seconds": report["seconds"]}
        first, second = (pair[method]["seconds"]["denoising"] for method in (options.first, options.second))
        pair["ratio_of_denoising"] = round(first / second, 3)
        print(f"denoising {first:.1f} s and {second:.1f} s: {first / second:.2f}", flush=True)
        pairs.append(pair)
    print(f"median {statistics.median(pair['ratio_of_denoising'] for pair in pairs):.2f}")
    if options.json is not None:
        record = {"prompt": PROMPT, "seed": 0, "versions": report["versions"], "machine": report["machine"]}
        options.json.write_text(json.dumps({**record, "pairs": pairs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

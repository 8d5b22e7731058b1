"""Which ways to hold a model fit into a GPU of so much memory: peak memory and time, with the allocator capped.

Each row is a process of its own that may allocate no more than a card of that size would let it. Weights are random, at
the model's real size; text encoders, which run before the transformer and not beside it with ``--offload``, are left
out. Two steps are run, one dense that searches and one sparse, and the video is decoded in tiles.

    python -m scripts.capped_memory --gb 24 48 --model hunyuan --json capped.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GIB = 1 << 30
CONTEXT = GIB  # what the driver takes beside the allocator
ROWS: Mapping[str, Mapping[str, Any]] = {
    "bf16": {},
    "bf16, offload model": {"offload": "model"},
    "bf16, offload group": {"offload": "group"},
    "fp8": {"weights_dtype": "fp8"},
    "fp8, offload model": {"weights_dtype": "fp8", "offload": "model"},
    "fp8, offload group": {"weights_dtype": "fp8", "offload": "group"},
    "int8": {"weights_dtype": "int8"},
    "int8, offload model": {"weights_dtype": "int8", "offload": "model"},
    "int8, offload group": {"weights_dtype": "int8", "offload": "group"},
    "linear fp8": {"linear": "fp8"},
    "linear fp8, offload model": {"linear": "fp8", "offload": "model"},
    "nf4": {"weights_dtype": "nf4"},
    "nf4, offload model": {"weights_dtype": "nf4", "offload": "model"},
}


class Silent:
    """An observer that hears and says nothing."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_told: None


def settings_of(row: str, model: str, changed: Mapping[str, Any], out: str) -> dict[str, Any]:
    """The settings of a row's run."""
    fixed = {"model": model, "random_weights": True, "decode": True, "vae_tiling": True, "dtype": "bfloat16"}
    few = {"out": out, "steps": 2, "search_steps": (0,), "prompt": ("a cat walks on the grass",)}
    return {**fixed, **few, **ROWS[row], **changed}


def measure(row: str, model: str, gb: float, changed: Mapping[str, Any]) -> dict[str, Any]:
    """Run a row in this process: peak memory in GiB and seconds, or what went wrong.

    The cap holds for all that this process allocates from now on; without a GPU there is none.
    """
    import torch

    from adaspa_cli.config import resolve
    from adaspa_cli.errors import AdaspaError, OutOfMemoryError
    from adaspa_cli.jobs.generate import generate

    if torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (gb * GIB - CONTEXT) / whole))
    try:
        with tempfile.TemporaryDirectory() as folder:
            (made,) = generate(resolve(settings_of(row, model, changed, folder)), Silent())
    except OutOfMemoryError:
        return {"fits": False}
    except (AdaspaError, RuntimeError, NotImplementedError, ValueError) as error:
        return {"fits": None, "error": " ".join(str(error).split())[:200]}
    report = made.report
    return {
        "fits": True,
        "peak_gib": (report.peak_memory.gpu_bytes or report.peak_memory.process_bytes) / GIB,
        "step_seconds": [step.seconds for step in report.steps],
        "decoding_seconds": report.seconds.decoding,
    }


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Results in Markdown."""
    lines = ["| | card, GiB | peak, GiB | dense step, s | sparse step, s | decoding, s |", "|---|---|---|---|---|---|"]
    for one in results:
        if one["fits"]:
            dense, sparse = one["step_seconds"]
            figures = [f"{one['peak_gib']:.1f}", f"{dense:.1f}", f"{sparse:.1f}", f"{one['decoding_seconds']:.1f}"]
        else:
            figures = ["does not fit" if one["fits"] is False else f"failed: {one['error']}", "", "", ""]
        lines.append(f"| {one['row']} | {one['gb']:g} | {' | '.join(figures)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, nargs="+", default=[24.0, 48.0], help="memory of the cards, in GiB")
    parser.add_argument("--model", default="hunyuan")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of the runs")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    parser.add_argument("--one", action="store_true", help="measure the one row in this process, and print it as JSON")
    given = parser.parse_args(arguments)
    from adaspa_cli.commands.settings import parse_settings

    changed = parse_settings(given.set)
    if given.one:
        print(json.dumps(measure(given.rows[0], given.model, given.gb[0], changed)))
        return
    results = []
    for gb in given.gb:
        for row in given.rows:
            command = [sys.executable, "-m", "scripts.capped_memory", "--one", "--rows", row, "--gb", str(gb)]
            command += ["--model", given.model, "--set", *given.set]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            last = (done.stdout.strip().splitlines() or [""])[-1]
            failed = {"fits": None, "error": " ".join(done.stderr.split())[-200:]}
            results.append({"row": row, "gb": gb, **(json.loads(last) if done.returncode == 0 else failed)})
            print(f"{row}, {gb:g} GiB: {results[-1]}", file=sys.stderr)
            if given.json is not None:
                given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()

"""Where the time of a denoising step goes, by kind of step, on a GPU: one table, and the most expensive kernels.

    PYTHONPATH=.:kernels python -m scripts.profile_steps --model hunyuan --layers 6 --json steps.json

Columns are kinds of step: those of diffusers as it comes, and of a method those with dense attention, with the search,
with the search that reuses the log-sum-exp, and sparse ones. Rows are kinds of work, told by the names of kernels:
attention (ours, cuDNN's, FlashAttention's), block sums, mask work (selection, packing, conversions), GEMM (linear
layers), norms with RoPE, modulation and activations, copies (concatenation, contiguous, casts), and what is none of
these. Gaps are the part of the step in which the GPU ran nothing. A wrong class shows in the second table.

The pipeline has random weights at the model's real size and never decodes. Each run happens twice, because kernels are
compiled and chosen in the first; in the second the last step of each kind counts. The profiler makes launches dearer
for the CPU, so that gaps may be wider than without it.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from adaspa_cli.commands.settings import parse_settings
from adaspa_cli.config import Resolved, resolve
from adaspa_cli.config.architecture import architecture_of, random_weights_note
from adaspa_cli.errors import AdaspaError, BackendError, OutputError
from adaspa_cli.files.typed_json import from_json, to_json
from adaspa_cli.files.whole import write_json
from adaspa_cli.models.loading import choose_device, load_pipeline
from adaspa_cli.report.machine import machine, versions
from adaspa_cli.report.schema import Machine
from adaspa_cli.sampling.memory import memory_errors
from scripts.bench_kernels import gpu_state
from scripts.profile_steps.record import Profiled, check_profiler, profile_diffusers, profile_method
from scripts.profile_steps.tables import kernel_table, memory_line, run_record, steps_of, work_table

PROMPT = "A cat walks on the grass in the morning sun, realistic style."
# Two dense steps, a search, a sparse step, a search that reuses the log-sum-exp, a sparse step.
SCHEDULE: dict[str, Any] = {"steps": 6, "search_steps": [2, 4]}
SHORT_STACK = (
    "What is no layer (embeddings, text refiner, final projection) runs once a step, whatever the number of layers: "
    "in a short stack it weighs more."
)
FLAGS = {
    "model": str, "layers": int, "height": int, "width": int, "frames": int, "steps": int, "method": str,
    "sparsity": float, "device": str,
}  # fmt: skip


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.profile_steps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, kind in FLAGS.items():
        parser.add_argument(f"--{name}", type=kind, help="as of adaspa generate")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="any other; repeatable"
    )
    parser.add_argument("--no-diffusers", action="store_true", help="leave diffusers as it comes out")
    parser.add_argument("--json", type=Path, help="write everything there")
    return parser.parse_args(given)


def settings(options: argparse.Namespace) -> Resolved:
    """The run's configuration: the schedule and the weights of a profile, then ``--set``, then flags.

    Raises:
        AdaspaError: as :func:`~adaspa_cli.config.resolve` does.
    """
    flags = {name: value for name in FLAGS if (value := getattr(options, name)) is not None}
    fixed = {"model": "hunyuan", "prompt": [PROMPT], **SCHEDULE}
    return resolve({**fixed, **parse_settings(options.settings), **flags, "random_weights": True, "decode": False})


def profiles(resolved: Resolved, *, diffusers: bool = True) -> list[Profiled]:
    """Build the one pipeline and profile it, as diffusers has it and with the method; returns a record of each run.

    Raises:
        AdaspaError: the settings do not fit the model, the memory does not suffice, or the profiler sees nothing.
    """
    config = resolved.config
    check_profiler(choose_device(config.model.device))
    prompt = config.prompts.prompt[0]
    with memory_errors(config):
        _say(f"building {config.model.model} with random weights")
        pipe = load_pipeline(config.model, decode=False)
        found = []
        if diffusers:
            _say("profiling diffusers as it comes")
            found.append(profile_diffusers(pipe, resolved, prompt))
        _say(f"profiling {config.method.method}")
        found.append(profile_method(pipe, resolved, prompt))
    return found


def text(record: dict[str, Any], found: list[Profiled]) -> str:
    """The tables, and what they belong to."""
    steps = steps_of(found)
    return "\n".join(
        [
            f"{record['model']}, {record['layers']} layers, {record['size']}, {record['weights']}",
            SHORT_STACK,
            f"{from_json(Machine, record['machine']).line()}; {record['versions']}",
            f"GPU before: {record['gpu_before']}",
            f"GPU after:  {record['gpu_after']}",
            *(memory_line(run) for run in found),
            f"\n{work_table(steps)}",
            f"\nThe most expensive kernels of each kind of step:\n\n{kernel_table(steps)}",
        ]
    )


def profile_record(resolved: Resolved, found: list[Profiled], device: torch.device, before: str) -> dict[str, Any]:
    """What the JSON file holds."""
    config = resolved.config
    return {
        "command": shlex.join(["python", "-m", "scripts.profile_steps", *sys.argv[1:]]),
        "versions": versions(),
        "machine": to_json(machine(device)),
        "gpu_before": before,
        "gpu_after": gpu_state(),
        "model": config.model.model,
        "layers": architecture_of(config.model).layers,
        "weights": random_weights_note(config.model),
        "note": SHORT_STACK,
        "size": f"{config.sampling.height} x {config.sampling.width} x {config.sampling.frames}",
        "settings": resolved.flat(),
        "runs": [run_record(run) for run in found],
    }


def _check_place(path: Path | None) -> None:
    """Refuse a file that cannot be written, before anything slow begins."""
    if path is not None and path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
    if path is not None and not path.absolute().parent.is_dir():
        raise OutputError(f"cannot write {path}: its folder is not there")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main(given: Sequence[str] | None = None) -> int:
    """Print the tables; 1 if it failed while running, 2 if it cannot be done."""
    options = arguments(given)
    try:
        resolved = settings(options)
        device = choose_device(resolved.config.model.device)
        if device.type != "cuda":
            raise BackendError(f"a profile of steps needs a GPU, and this run would be on {device}")
        _check_place(options.json)
        before = gpu_state()
        found = profiles(resolved, diffusers=not options.no_diffusers)
        written = profile_record(resolved, found, device, before)
        if options.json:
            write_json(options.json, written, replace=True)
        print(text(written, found))
    except AdaspaError as error:
        hint = f" ({error.hint})" if error.hint else ""
        print(f"profile_steps: {error.message}{hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

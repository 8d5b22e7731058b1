"""How long the choice of a mask and its conversions take on a GPU, by kernels and in PyTorch.

    PYTHONPATH=.:kernels python -m scripts.bench_selection --json selection.json

The size is HunyuanVideo's at 720p: 24 heads, 1,861 blocks of 64, 80 % sparsity, head-adaptive, or one budget for the
layer by the scores of the output error, as adaspa-plus has it (the scores have one way alone). Block sums are random:
``spread`` ones are log-normal, wider from head to head; of ``mostly zero`` ones three in four are zero, so that the
heads that keep most run out of weights: their thresholds are ties.

No time without a right result: what the kernels give must be what PyTorch gives, lists and bits exactly, recall to
1e-5. Timing: as the single launches of ``bench_kernels``, what a launch costs the CPU left out; the median, and the
spread (max - min) / median. Memory is the peak above what was there before the call, the result included.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout, mask_conversion
from adaspa_cli.files.typed_json import to_json
from adaspa_cli.masks import budget, selection
from adaspa_cli.masks.output_error import output_error
from adaspa_cli.report.machine import machine, versions
from scripts.bench_kernels import gpu_state, measure

DEVICE = torch.device("cuda")
LAYOUT = TokenLayout(33, 45, 80, 256, "last")
HEADS, BLOCK, SPARSITY = 24, 64, 0.8
RECALL_ERROR = 1e-5

WAYS = {"torch": False, "kernels": True}
Call = Callable[[], tuple[Tensor, ...]]


@dataclass
class Row:
    """One line of the table: milliseconds and bytes, or why there are none."""

    task: str
    sums: str
    way: str
    milliseconds: float | None = None
    spread: float | None = None
    peak_bytes: int | None = None
    problem: str | None = None


@contextmanager
def way(kernels: bool) -> Iterator[None]:
    """Within it kernels do everything, or PyTorch does."""
    with (
        patch.object(selection, "kernels_take", lambda _: kernels),
        patch.object(budget, "kernels_take", lambda _: kernels),
        patch.object(mask_conversion, "kernels_convert", lambda _: kernels),
    ):
        yield


def block_sums(kind: str) -> Tensor:
    """W [H, Nq, Nk]; each row has the mass of its queries."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    blocks = LAYOUT.blocks(BLOCK)
    noise = torch.randn(HEADS, blocks, blocks, generator=generator, device=DEVICE)
    weights = torch.exp(noise * torch.linspace(0.5, 3, HEADS, device=DEVICE)[:, None, None])
    if kind == "mostly zero":
        weights *= torch.rand(weights.shape, generator=generator, device=DEVICE) < 0.25
        weights[..., 0] += 1e-6  # no row is without mass
    return BLOCK * weights / weights.sum(-1, keepdim=True)


def tasks(W: Tensor) -> dict[str, Call]:
    """What is timed, by name; each gives tensors to compare."""
    size = (BLOCK, BLOCK)
    with way(kernels=False):
        mask = selection.select(W, LAYOUT, size, SPARSITY, head_adaptive=True).mask
        dense, bits = mask.to_bool(), mask.to_bits()
    key_blocks, width = mask.key_blocks, mask.indices.shape[-1]

    def select(head_adaptive: bool) -> tuple[Tensor, ...]:
        found = selection.select(W, LAYOUT, size, SPARSITY, head_adaptive=head_adaptive)
        return found.mask.counts, found.mask.indices, found.recall

    means = torch.randn(HEADS, key_blocks, 128, generator=torch.Generator(DEVICE).manual_seed(1), device=DEVICE)
    scores = output_error(W, means)

    def share() -> tuple[Tensor, ...]:
        found = budget.select_by_score(W, scores, LAYOUT, size, SPARSITY, "layer")
        return found.mask.counts, found.mask.indices, found.recall

    def lists(converted: BlockMask) -> tuple[Tensor, ...]:
        return converted.counts, converted.indices

    return {
        "select, head-adaptive": lambda: select(head_adaptive=True),
        "select, one count": lambda: select(head_adaptive=False),
        "select, layer budget": share,
        "score by output error": lambda: (output_error(W, means),),
        "lists to bools": lambda: (mask.to_bool(),),
        "lists to bits": lambda: (mask.to_bits(),),
        "bools to lists": lambda: lists(BlockMask.from_bool(dense, size, width=width)),
        "bits to lists": lambda: lists(BlockMask.from_bits(bits, key_blocks, size, width=width)),
    }


def difference(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> str | None:
    """Say what is wrong: integers and bools have to be equal, recall only close."""
    for mine, right in zip(found, truth, strict=True):
        if mine.shape != right.shape or mine.dtype != right.dtype:
            return f"wrong result: {mine.dtype} {tuple(mine.shape)}, not {right.dtype} {tuple(right.shape)}"
        if mine.is_floating_point():
            error = float((mine - right).abs().max())
            if not error <= RECALL_ERROR:
                return f"wrong result: recall differs by {error:.1e}, at most {RECALL_ERROR:.0e} is allowed"
        elif not torch.equal(mine, right):
            return f"wrong result: {int((mine != right).sum())} of {mine.numel()} elements differ"
    return None


def peak(call: Call) -> int:
    """Bytes that the call had allocated at most, above those before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def bench(kind: str, names: list[str], repeats: int) -> list[Row]:
    """Check and time both ways of each task; what fails is a row of its own and stops nothing else."""
    rows = []
    calls = tasks(block_sums(kind))
    for task, call in calls.items():
        with way(kernels=False):
            truth = call()
        for name in names:
            rows.append(row := Row(task, kind, name))
            try:
                with way(WAYS[name]):
                    row.problem = difference(call(), truth)
                    if row.problem is None:
                        row.milliseconds, row.spread, _ = measure(call, repeats)
                        row.peak_bytes = peak(call)
            except Exception as problem:  # a compiler's error, out of memory
                row.problem = f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
            print(line(row), file=sys.stderr, flush=True)
    return rows


def line(row: Row) -> str:
    start = f"{row.task:<24}{row.sums:<13}{row.way:<9}"
    if row.problem or row.milliseconds is None or row.spread is None or row.peak_bytes is None:
        return f"{start}  {row.problem}"
    return f"{start}{row.milliseconds:>10.3f}{row.spread:>8.1%}{row.peak_bytes / 1e6:>10.1f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sums", nargs="+", choices=["spread", "mostly zero"], default=["spread", "mostly zero"])
    parser.add_argument("--ways", nargs="+", choices=sorted(WAYS), default=["torch", "kernels"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write all rows there")
    return parser.parse_args()


def main() -> int:
    """Print the table; 1 where a result was wrong or something failed."""
    options = arguments()
    if not torch.cuda.is_available():
        print("bench_selection needs a CUDA device", file=sys.stderr)
        return 1
    before = gpu_state()
    rows = [row for kind in options.sums for row in bench(kind, options.ways, options.repeats)]
    print(f"{versions()}\n{machine(DEVICE).line()}\nGPU before: {before}\nGPU after:  {gpu_state()}\n")
    print(f"{'task':<24}{'block sums':<13}{'way':<9}{'ms':>10}{'spread':>8}{'peak MB':>10}")
    for row in rows:
        print(line(row))
    if options.json:
        found = {"versions": versions(), "machine": to_json(machine(DEVICE))}
        found |= {"gpu_before": before, "gpu_after": gpu_state()}
        found |= {"heads": HEADS, "blocks": LAYOUT.blocks(BLOCK), "sparsity": SPARSITY, "repeats": options.repeats}
        found |= {"timing": "single calls, median"}
        options.json.write_text(json.dumps(found | {"rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    return int(any(row.problem for row in rows))


if __name__ == "__main__":
    sys.exit(main())

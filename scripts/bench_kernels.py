"""How fast the GPU kernels are, next to dense attention and to a matrix product.

    PYTHONPATH=.:kernels python -m scripts.bench_kernels --json kernels.json

For head dim 128 (118,784 tokens, 12 heads) and 64 (86,016 tokens): dense attention of PyTorch, of this project and,
where installed, of flash-attn-4; the sparse kernels, portable and Hopper, at several densities; FlexAttention at
128x128; the block sums of the search, the whole search of a layer, and the choice of its mask. TFLOP/s counts kept
blocks alone, 4 L^2 D H density (block sums: 2 L^2 D H). The ceiling is cuBLAS's product of two 8192 x 8192 matrices,
measured in the same run; ``of dense`` is the time over that of the fastest dense kernel.

Masks: ``uniform`` lists are random in each row; ``clustered`` ones are like those of a video, where neighbouring rows
keep mostly the same blocks (the overlap is printed); ``uneven`` ones are clustered, keep half, all and one and a half
of the blocks in a third of the heads each, and everything in four rows, as head-adaptive masks with text do.

No time without a right result: sampled rows are compared with float64 on the GPU first, the mask of one head with
PyTorch's choice. Two timings. *Single*: launches apart, each between two events, queued behind a pause of the GPU so
that Python's own time is not counted; two warm-ups, the median and the spread (max - min) / median. *Sustained*: half
a second without a pause. On a GPU that its power limits, such as the H200, the second is lower.

Shapes: [1, H, L, D], bf16, as views of [1, L, H, D].
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import adaspa_kernels
from adaspa_cli.attention import TokenLayout, dense
from adaspa_cli.attention.block_mask import BlockMask, index_dtype
from adaspa_cli.files.typed_json import to_json
from adaspa_cli.masks import FoundMask
from adaspa_cli.masks.selection import select
from adaspa_cli.report.machine import machine, versions

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
HEADS = 12
TOKENS = {128: 118_784, 64: 86_016}
QUICK_TOKENS = 29_696
MASKS = ("uniform", "clustered", "uneven")
DENSITIES = (0.1, 0.2, 0.5)
TEXT_ROWS = 4  # query blocks that keep everything, in uneven masks
TEXT_TOKENS = 256
PAUSE = 20_000_000  # clock cycles, about 10 ms: more than the launches of a layer cost the CPU
SUSTAINED_SECONDS = 0.5
CEILING_SIZE = 8192
OUTPUT_ERROR, LSE_ERROR, SUMS_ERROR = 1e-2, 2e-3, 2e-3  # relative to the norm; the LSE absolute

Attention = Callable[[], tuple[Tensor, Tensor | None]]


@dataclass
class Row:
    """One line of the table: milliseconds and TFLOP/s, or why there are none."""

    kernel: str
    head_dim: int
    tokens: int
    block: int | None = None
    mask: str = "dense"
    density: float = 1.0
    milliseconds: float | None = None
    spread: float | None = None
    sustained_milliseconds: float | None = None
    teraflops: float | None = None
    sustained_teraflops: float | None = None
    of_ceiling: float | None = None
    of_dense: float | None = None
    error: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Inputs:
    """q, k, v [1, H, L, D] and the factor of q k^T."""

    q: Tensor
    k: Tensor
    v: Tensor

    @property
    def scale(self) -> float:
        return float(self.q.shape[-1] ** -0.5)


def inputs(tokens: int, head_dim: int) -> Inputs:
    generator = torch.Generator(DEVICE).manual_seed(0)
    make = partial(torch.randn, generator=generator, device=DEVICE, dtype=DTYPE)
    q, k, v = (make(1, tokens, HEADS, head_dim).transpose(1, 2) for _ in range(3))
    return Inputs(q, k, v)


def mask(kind: str, tokens: int, block: int, density: float) -> BlockMask:
    """Rows keep the blocks of the highest random scores; clustered and uneven scores vary slowly with the row."""
    blocks = -(-tokens // block)
    factors = [0.5, 1.0, 1.5] if kind == "uneven" else [1.0]
    kept = [max(1, round(density * factors[head * len(factors) // HEADS] * blocks)) for head in range(HEADS)]
    generator = torch.Generator(DEVICE).manual_seed(1)
    indices = torch.zeros(HEADS, blocks, max(kept), dtype=index_dtype(blocks), device=DEVICE)
    for head, count in enumerate(kept):
        scores = torch.rand(blocks, blocks, generator=generator, device=DEVICE)
        if kind != "uniform":
            scores = F.avg_pool1d(scores.T[None], 9, 1, 4)[0].T
        indices[head, :, :count] = scores.topk(count, -1).indices.sort(-1).values.to(indices.dtype)
    counts = torch.tensor(kept, dtype=torch.int32, device=DEVICE)[:, None].repeat(1, blocks)
    if kind == "uneven":
        counts[:, -TEXT_ROWS:] = blocks
    return BlockMask(counts, indices, blocks, (block, block))


def overlap(kept: BlockMask) -> float:
    """Mean share of blocks that a row has in common with the next one, of the first head."""
    flags = kept.to_bool()[0]
    return float((flags[1:] & flags[:-1]).sum() / flags[1:].sum())


def samples(blocks: int) -> Iterator[tuple[int, int]]:
    """A few (head, query block): both ends and the middle."""
    rows = sorted({0, 1, blocks // 3, blocks // 2, blocks - 2, blocks - 1})
    return ((head, row) for head in (0, HEADS - 1) for row in rows if row >= 0)


def exact_logits(x: Inputs, head: int, rows: slice, kept: Tensor | None, block: int) -> Tensor:
    """Float64 logits [rows, L] of some query rows, -inf where a block is left out."""
    logits = x.q[0, head, rows].double() @ x.k[0, head].double().T * x.scale
    if kept is not None:
        logits = logits.masked_fill(~kept.repeat_interleave(block)[: logits.shape[1]], -torch.inf)
    return logits


def attention_error(x: Inputs, out: Tensor, lse: Tensor | None, kept: BlockMask | None) -> float:
    """Relative error of sampled rows against float64; infinite where the LSE is wrong or a number is not finite."""
    block = kept.block_size[0] if kept else 64
    flags = kept.to_bool() if kept else None
    worst = 0.0
    for head, row in samples(-(-x.q.shape[2] // block)):
        rows = slice(row * block, min((row + 1) * block, x.q.shape[2]))
        logits = exact_logits(x, head, rows, None if flags is None else flags[head, row], block)
        truth = torch.softmax(logits, -1) @ x.v[0, head].double()
        error = float((out[0, head, rows].double() - truth).norm() / truth.norm())
        if lse is not None:
            difference = (lse[0, head, rows].double() - torch.logsumexp(logits, -1)).abs().max()
            error = error if float(difference) <= LSE_ERROR else float("inf")
        worst = max(worst, error if error == error else float("inf"))
    return worst


def sums_error(x: Inputs, lse: Tensor, sums: Tensor) -> float:
    """Relative error of sampled rows of block sums against float64."""
    worst = 0.0
    padding = -x.k.shape[2] % 64
    for head, row in samples(sums.shape[2]):
        rows = slice(row * 64, min((row + 1) * 64, x.q.shape[2]))
        weights = torch.exp(exact_logits(x, head, rows, None, 64) - lse[0, head, rows, None].double())
        truth = F.pad(weights, (0, padding)).reshape(weights.shape[0], -1, 64).sum((0, 2))
        error = float((sums[0, head, row].double() - truth).norm() / truth.norm())
        worst = max(worst, error if error == error else float("inf"))
    return worst


def measure(call: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median milliseconds of single launches, their spread, and milliseconds without a pause between launches."""
    for _ in range(2):
        call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        torch.cuda._sleep(PAUSE)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    median = statistics.median(times)
    launches = max(3, round(SUSTAINED_SECONDS * 1000 / median))
    begin.record()
    for _ in range(launches):
        call()
    end.record()
    torch.cuda.synchronize()
    return median, (max(times) - min(times)) / median, begin.elapsed_time(end) / launches


class Bench:
    """Rows as they are measured, and the ceiling that they are held against."""

    def __init__(self, repeats: int, written: Callable[[list[Row]], None] = lambda _: None) -> None:
        self.repeats, self.written = repeats, written
        self.rows: list[Row] = []
        self.ceiling: float | None = None

    def run(
        self, row: Row, flops: float, call: Callable[[], object], error: Callable[[], float], allowed: float
    ) -> None:
        """Check, then time; what fails is a row of its own and stops nothing else."""
        self.rows.append(row)
        begin = time.perf_counter()
        others = [
            other.milliseconds
            for other in self.rows
            if other.kernel.startswith("dense") and other.head_dim == row.head_dim and other.milliseconds
        ]
        try:
            row.error = error()
            if not row.error <= allowed:
                row.problem = f"wrong result: error {row.error:.1e}, at most {allowed:.0e} allowed"
            else:
                row.milliseconds, row.spread, row.sustained_milliseconds = measure(call, self.repeats)
                row.of_dense = row.milliseconds / min(others) if others and not row.kernel.startswith("dense") else None
                if flops:
                    row.teraflops = flops / row.milliseconds / 1e9
                    row.sustained_teraflops = flops / row.sustained_milliseconds / 1e9
                    row.of_ceiling = row.teraflops / self.ceiling if self.ceiling else None
        except Exception as problem:  # a baseline that this machine lacks, out of memory, a compiler's error
            row.problem = f"{type(problem).__name__}: {str(problem).strip().splitlines()[0] if str(problem) else ''}"[
                :200
            ]
        print(f"[{time.perf_counter() - begin:5.1f} s] {line(row)}", file=sys.stderr, flush=True)
        self.written(self.rows)

    def attend(self, row: Row, x: Inputs, kept: BlockMask | None, call: Attention) -> None:
        flops = 4 * x.q.shape[2] * x.k.shape[2] * x.q.shape[3] * HEADS * row.density
        self.run(row, flops, call, lambda: attention_error(x, *call(), kept), OUTPUT_ERROR)


def measure_ceiling(bench: Bench) -> None:
    a, b = (torch.randn(CEILING_SIZE, CEILING_SIZE, device=DEVICE, dtype=DTYPE) for _ in range(2))
    row = Row("matrix product 8192^3", 0, CEILING_SIZE, mask="-")
    exact = a[:8].double() @ b.double()
    error = lambda: float(((a @ b)[:8].double() - exact).norm() / exact.norm())  # noqa: E731
    bench.run(row, 2 * CEILING_SIZE**3, lambda: a @ b, error, OUTPUT_ERROR)
    bench.ceiling = row.teraflops


def dense_calls(x: Inputs) -> dict[str, Attention]:
    return {
        f"dense, {name}": partial(attend, x.q, x.k, x.v, x.scale)
        for name, attend in dense.candidates(x.q.shape[-1]).items()
    }


def sparse_call(x: Inputs, kept: BlockMask, path: str) -> Attention:
    return partial(
        adaspa_kernels.block_sparse_attention, x.q, x.k, x.v, kept.counts, kept.indices,
        key_blocks=kept.key_blocks, block_size=kept.block_size, scale=x.scale, path=path,
    )  # fmt: skip


def flex_call(x: Inputs, kept: BlockMask) -> Attention:
    """FlexAttention, compiled at the first call."""
    from torch.nn.attention import flex_attention as flex

    compiled = torch.compile(flex.flex_attention, dynamic=False)
    blocks: list[flex.BlockMask] = []

    def call() -> tuple[Tensor, None]:
        if not blocks:
            indices = F.pad(kept.indices.int(), (0, kept.key_blocks - kept.indices.shape[-1]))[None]
            everything = torch.arange(kept.key_blocks, dtype=torch.int32, device=indices.device)
            indices = torch.where((kept.counts == kept.key_blocks)[None, ..., None], everything, indices)
            made = flex.BlockMask.from_kv_blocks(
                torch.zeros_like(kept.counts)[None], torch.zeros_like(indices), kept.counts[None], indices,
                BLOCK_SIZE=kept.block_size, seq_lengths=(x.q.shape[2], x.k.shape[2]),
            )  # fmt: skip
            blocks.append(made)
        return compiled(x.q, x.k, x.v, block_mask=blocks[0]), None

    return call


def bench_head_dim(bench: Bench, options: argparse.Namespace, head_dim: int) -> None:
    tokens = options.tokens or (QUICK_TOKENS if options.quick else TOKENS[head_dim])
    x = inputs(tokens, head_dim)
    row = partial(Row, head_dim=head_dim, tokens=tokens)
    if not options.no_dense:
        for name, call in dense_calls(x).items():
            bench.attend(row(name), x, None, call)
    for kind in options.masks:
        for density in options.densities:
            for block in (64, 128):
                if block == 128 and kind == "clustered":
                    continue
                bench_mask(bench, options, x, row, kind, block, density)
    if not options.no_sums:
        bench_search(bench, options, x, row)


def bench_mask(
    bench: Bench, options: argparse.Namespace, x: Inputs, row: Callable[..., Row], kind: str, block: int, density: float
) -> None:
    kept = mask(kind, x.q.shape[2], block, density)
    about = {"block": block, "mask": f"{kind} {overlap(kept):.0%}", "density": float(kept.density().mean())}
    for path in options.paths:
        bench.attend(row(f"sparse, {path}", **about), x, kept, sparse_call(x, kept, path))
    if options.flex and block == 128:
        bench.attend(row("FlexAttention", **about), x, kept, flex_call(x, kept))


def bench_search(bench: Bench, options: argparse.Namespace, x: Inputs, row: Callable[..., Row]) -> None:
    """Block sums alone, a search step of one layer with its dense attention, and the choice of the mask from W."""
    flops = 2 * x.q.shape[2] * x.k.shape[2] * x.q.shape[3] * HEADS
    attend = partial(dense.dense_attention, x.q, x.k, x.v, x.scale)
    lse = attend()[1]
    for path in options.paths:
        call = partial(adaspa_kernels.block_sums, x.q, x.k, lse, block_size=(64, 64), scale=x.scale, path=path)
        error = lambda call=call: sums_error(x, lse, call())  # noqa: E731
        bench.run(row(f"block sums, {path}", block=64), flops, call, error, SUMS_ERROR)

    layout = TokenLayout(1, 1, x.q.shape[2] - TEXT_TOKENS, TEXT_TOKENS, "last")
    choose = partial(select, layout=layout, block_size=(64, 64), sparsity=0.8, head_adaptive=True)
    sums = adaspa_kernels.block_sums(x.q, x.k, lse, block_size=(64, 64), scale=x.scale)

    def search() -> tuple[Tensor, Tensor]:
        _, its_lse = attend()
        its_sums = adaspa_kernels.block_sums(x.q, x.k, its_lse, block_size=(64, 64), scale=x.scale)
        choose(its_sums[0])
        return its_lse, its_sums

    bench.run(row("mask selection", block=64), 0, lambda: choose(sums[0]), lambda: _selection_error(choose, sums), 0)
    error = lambda: sums_error(x, *search())  # noqa: E731
    bench.run(row("whole search of a layer", block=64), 3 * flops, search, error, SUMS_ERROR)


def _selection_error(choose: Callable[[Tensor], FoundMask], sums: Tensor) -> float:
    """Share of blocks that the choice without kernels decides otherwise, in one head."""
    mine, right = (choose(w).mask.to_bool() for w in (sums[0, :1], sums[0, :1].cpu()))
    return float((mine.cpu() != right).float().mean())


HEADER = (
    f"{'kernel':<24}{'D':>4}{'tokens':>9}{'block':>9}  {'mask, overlap':<15}{'kept':>6}"
    f"{'ms':>10}{'spread':>8}{'TFLOP/s':>9}{'ceiling':>8}{'sustained':>10}{'of dense':>9}{'error':>10}"
)


def line(row: Row) -> str:
    block = f"{row.block}x{row.block}" if row.block else "-"
    start = f"{row.kernel:<24}{row.head_dim:>4}{row.tokens:>9}{block:>9}  {row.mask:<15}{row.density:>6.1%}"
    if row.problem:
        return f"{start}  {row.problem}"

    def cell(value: float | None, width: int, form: str) -> str:
        return f"{'-' if value is None else format(value, form):>{width}}"

    return (
        f"{start}{row.milliseconds:>10.2f}{row.spread:>8.1%}{cell(row.teraflops, 9, '.0f')}"
        f"{cell(row.of_ceiling, 8, '.0%')}{cell(row.sustained_teraflops, 10, '.0f')}{cell(row.of_dense, 9, '.3f')}"
        f"{row.error:>10.1e}"
    )


def gpu_state() -> str:
    """Clock, power and temperature, as the driver states them."""
    query = "--query-gpu=clocks.sm,clocks.max.sm,power.draw,power.limit,temperature.gpu"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TOKENS} tokens, 20 %% density, 3 repeats")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--head-dims", type=int, nargs="+", choices=sorted(TOKENS), default=[128, 64])
    parser.add_argument("--densities", type=float, nargs="+")
    parser.add_argument("--masks", nargs="+", choices=MASKS, default=list(MASKS))
    parser.add_argument("--paths", nargs="+", choices=["portable", "hopper"], default=["portable", "hopper"])
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--no-dense", action="store_true")
    parser.add_argument("--no-sums", action="store_true")
    parser.add_argument("--flex", action="store_true", help="FlexAttention too; compiling it takes a while")
    parser.add_argument("--json", type=Path, help="write all rows there")
    options = parser.parse_args()
    options.densities = options.densities or ([0.2] if options.quick else list(DENSITIES))
    options.repeats = options.repeats or (3 if options.quick else 7)
    return options


def main() -> int:
    """Print the table; 1 where a result was wrong or a kernel of this project failed."""
    options = arguments()
    if not torch.cuda.is_available():
        print("bench_kernels needs a CUDA device", file=sys.stderr)
        return 1
    before = gpu_state()

    def write(rows: list[Row]) -> None:
        if options.json:
            found = {"versions": versions(), "machine": to_json(machine(DEVICE))}
            found |= {"gpu_before": before, "gpu_after": gpu_state()}
            found |= {
                "command": shlex.join(["python", "-m", "scripts.bench_kernels", *sys.argv[1:]]),
                "repeats": options.repeats,
            }
            options.json.write_text(json.dumps(found | {"rows": [asdict(row) for row in rows]}, indent=2) + "\n")

    bench = Bench(options.repeats, write)
    measure_ceiling(bench)
    for head_dim in options.head_dims:
        bench_head_dim(bench, options, head_dim)
    print(f"{versions()}\n{machine(DEVICE).line()}\nGPU before: {before}\nGPU after:  {gpu_state()}\n\n{HEADER}")
    for row in bench.rows:
        print(line(row))
    own = (row for row in bench.rows if row.kernel.startswith(("sparse", "block sums", "mask", "whole")))
    return int(any(row.problem for row in own))


if __name__ == "__main__":
    sys.exit(main())

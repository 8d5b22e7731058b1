"""How fast the GPU kernels are, next to dense attention and to a matrix product.

    PYTHONPATH=.:kernels python -m scripts.bench_kernels --json kernels.json

For head dim 128 (118,784 tokens, 12 heads) and 64 (86,016 tokens): dense attention of PyTorch and, where installed, of
flash-attn-4; the sparse kernels of this project, portable and Hopper, at several densities; FlexAttention at 128x128;
the block sums of the search. TFLOP/s counts kept blocks alone, 4 L^2 D H density (the search: 2 L^2 D H). The ceiling
is cuBLAS's product of two 8192 x 8192 matrices, measured in the same run.

Masks: ``uniform`` lists are random in each row; ``clustered`` ones are like those of a video, where neighbouring rows
keep mostly the same blocks (the overlap is printed).

No time without a right result: sampled query blocks are compared with float64 on the GPU first. Timing: single
launches between two events, after a warm-up, so that power limits show less than in minutes of load; the median, and
the spread (max - min) / median.

Shapes: [1, H, L, D], bf16, as views of [1, L, H, D].
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import adaspa_kernels
from adaspa_cli.attention.block_mask import BlockMask, index_dtype
from adaspa_cli.report.machine import machine, versions

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
HEADS = 12
TOKENS = {128: 118_784, 64: 86_016}
QUICK_TOKENS = 29_696
DENSITIES = (0.1, 0.2, 0.5)
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
    teraflops: float | None = None
    of_ceiling: float | None = None
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
    """Every row keeps the same number of blocks, chosen by random scores; clustered scores vary slowly with the row."""
    blocks = -(-tokens // block)
    kept = max(1, round(density * blocks))
    generator = torch.Generator(DEVICE).manual_seed(1)
    lists = []
    for _ in range(HEADS):
        scores = torch.rand(blocks, blocks, generator=generator, device=DEVICE)
        if kind == "clustered":
            scores = F.avg_pool1d(scores.T[None], 9, 1, 4)[0].T
        lists.append(scores.topk(kept, -1).indices.sort(-1).values.to(index_dtype(blocks)))
    counts = torch.full((HEADS, blocks), kept, dtype=torch.int32, device=DEVICE)
    return BlockMask(counts, torch.stack(lists).contiguous(), blocks, (block, block))


def overlap(kept: BlockMask) -> float:
    """Mean share of blocks that a row has in common with the next one, of the first head."""
    dense = kept.to_bool()[0]
    return float((dense[1:] & dense[:-1]).sum() / dense[1:].sum())


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
    dense = kept.to_bool() if kept else None
    worst = 0.0
    for head, row in samples(-(-x.q.shape[2] // block)):
        rows = slice(row * block, min((row + 1) * block, x.q.shape[2]))
        logits = exact_logits(x, head, rows, None if dense is None else dense[head, row], block)
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


def measure(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median milliseconds of single launches, and their spread."""
    for _ in range(2):
        call()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    median = statistics.median(times)
    return median, (max(times) - min(times)) / median


class Bench:
    """Rows as they are measured, and the ceiling that they are held against."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.rows: list[Row] = []
        self.ceiling: float | None = None

    def run(
        self, row: Row, flops: float, call: Callable[[], object], error: Callable[[], float], allowed: float
    ) -> None:
        """Check, then time; what fails is a row of its own and stops nothing else."""
        self.rows.append(row)
        begin = time.perf_counter()
        try:
            row.error = error()
            if not row.error <= allowed:
                row.problem = f"wrong result: error {row.error:.1e}, at most {allowed:.0e} allowed"
            else:
                row.milliseconds, row.spread = measure(call, self.repeats)
                row.teraflops = flops / row.milliseconds / 1e9
                row.of_ceiling = row.teraflops / self.ceiling if self.ceiling else None
        except Exception as problem:  # a baseline that this machine lacks, out of memory, a compiler's error
            row.problem = f"{type(problem).__name__}: {str(problem).strip().splitlines()[0] if str(problem) else ''}"[
                :200
            ]
        print(f"[{time.perf_counter() - begin:5.1f} s] {line(row)}", file=sys.stderr, flush=True)

    def attend(self, row: Row, x: Inputs, kept: BlockMask | None, call: Attention) -> None:
        flops = 4 * x.q.shape[2] * x.k.shape[2] * x.q.shape[3] * HEADS * row.density
        self.run(row, flops, call, lambda: attention_error(x, *call(), kept), OUTPUT_ERROR)


def measure_ceiling(bench: Bench) -> None:
    a, b = (torch.randn(CEILING_SIZE, CEILING_SIZE, device=DEVICE, dtype=DTYPE) for _ in range(2))
    row = Row("matrix product 8192^3", 0, CEILING_SIZE, mask="-")
    bench.run(row, 2 * CEILING_SIZE**3, lambda: a @ b, lambda: 0.0, 1.0)
    bench.ceiling = row.teraflops


def dense_calls(x: Inputs) -> dict[str, Attention]:
    def sdpa(backend: SDPBackend) -> tuple[Tensor, None]:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(x.q, x.k, x.v), None

    calls: dict[str, Attention] = {
        f"dense, SDPA {name}": partial(sdpa, backend)
        for name, backend in (
            ("flash", SDPBackend.FLASH_ATTENTION),
            ("cuDNN", SDPBackend.CUDNN_ATTENTION),
            ("efficient", SDPBackend.EFFICIENT_ATTENTION),
        )
    }
    if find_spec("flash_attn") is not None and find_spec("flash_attn.cute") is not None:
        calls["dense, flash-attn-4"] = partial(_flash_attn_4, x)
    return calls


def _flash_attn_4(x: Inputs) -> tuple[Tensor, None]:
    from flash_attn.cute import flash_attn_func

    result = flash_attn_func(*(t.transpose(1, 2) for t in (x.q, x.k, x.v)))
    return (result[0] if isinstance(result, tuple) else result).transpose(1, 2), None


def sparse_call(x: Inputs, kept: BlockMask, path: str) -> Attention:
    return partial(
        adaspa_kernels.block_sparse_attention, x.q, x.k, x.v, kept.counts, kept.indices,
        key_blocks=kept.key_blocks, block_size=kept.block_size, scale=x.scale, path=path,
    )  # fmt: skip


def flex_call(x: Inputs, kept: BlockMask) -> Attention:
    from torch.nn.attention import flex_attention as flex

    width = kept.key_blocks
    indices = F.pad(kept.indices.int(), (0, width - kept.indices.shape[-1]))[None]
    blocks = flex.BlockMask.from_kv_blocks(
        torch.zeros_like(kept.counts)[None], torch.zeros_like(indices), kept.counts[None], indices,
        BLOCK_SIZE=kept.block_size, seq_lengths=(x.q.shape[2], x.k.shape[2]),
    )  # fmt: skip
    compiled = torch.compile(flex.flex_attention, dynamic=False)
    return lambda: (compiled(x.q, x.k, x.v, block_mask=blocks), None)


def bench_head_dim(bench: Bench, options: argparse.Namespace, head_dim: int) -> None:
    tokens = options.tokens or (QUICK_TOKENS if options.quick else TOKENS[head_dim])
    x = inputs(tokens, head_dim)
    row = partial(Row, head_dim=head_dim, tokens=tokens)
    if not options.no_dense:
        for name, call in dense_calls(x).items():
            bench.attend(row(name), x, None, call)
    for kind in options.masks:
        for density in options.densities:
            kept = mask(kind, tokens, 64, density)
            achieved = float(kept.density().mean())
            label = f"{kind} {overlap(kept):.0%}"
            for path in options.paths:
                bench.attend(
                    row(f"sparse, {path}", block=64, mask=label, density=achieved), x, kept, sparse_call(x, kept, path)
                )
    if "portable" in options.paths:
        for density in options.densities:
            kept = mask("uniform", tokens, 128, density)
            achieved = float(kept.density().mean())
            bench.attend(
                row("sparse, portable", block=128, mask="uniform", density=achieved),
                x,
                kept,
                sparse_call(x, kept, "portable"),
            )
            if options.flex:
                bench.attend(
                    row("FlexAttention", block=128, mask="uniform", density=achieved), x, kept, flex_call(x, kept)
                )
    if not options.no_sums:
        bench_sums(bench, options, x, row)


def bench_sums(bench: Bench, options: argparse.Namespace, x: Inputs, row: Callable[..., Row]) -> None:
    everything = BlockMask.full(HEADS, -(-x.q.shape[2] // 64), -(-x.k.shape[2] // 64), (64, 64), DEVICE)
    _, lse = sparse_call(x, everything, "portable")()
    assert lse is not None
    flops = 2 * x.q.shape[2] * x.k.shape[2] * x.q.shape[3] * HEADS
    for path in options.paths:
        call = partial(adaspa_kernels.block_sums, x.q, x.k, lse, block_size=(64, 64), scale=x.scale, path=path)
        error = lambda call=call: sums_error(x, lse, call())  # noqa: E731
        bench.run(row(f"block sums, {path}", block=64), flops, call, error, SUMS_ERROR)


def line(row: Row) -> str:
    block = f"{row.block}x{row.block}" if row.block else "-"
    start = f"{row.kernel:<24}{row.head_dim:>4}{row.tokens:>9}{block:>9}  {row.mask:<15}{row.density:>6.1%}"
    if row.problem:
        return f"{start}  {row.problem}"
    share = f"{row.of_ceiling:>8.0%}" if row.of_ceiling else " " * 8
    return f"{start}{row.milliseconds:>10.2f}{row.spread:>8.1%}{row.teraflops:>9.0f}{share}{row.error:>10.1e}"


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
    parser.add_argument("--masks", nargs="+", choices=["uniform", "clustered"], default=["uniform", "clustered"])
    parser.add_argument("--paths", nargs="+", choices=["portable", "hopper"], default=["portable"])
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
    bench = Bench(options.repeats)
    before = gpu_state()
    measure_ceiling(bench)
    for head_dim in options.head_dims:
        bench_head_dim(bench, options, head_dim)
    header = f"{'kernel':<24}{'D':>4}{'tokens':>9}{'block':>9}  {'mask, overlap':<15}{'kept':>6}"
    print(f"{versions()}\n{machine(DEVICE)}\nGPU before: {before}\nGPU after:  {gpu_state()}\n")
    print(f"{header}{'ms':>10}{'spread':>8}{'TFLOP/s':>9}{'ceiling':>8}{'error':>10}")
    for row in bench.rows:
        print(line(row))
    if options.json:
        found = {"versions": versions(), "machine": machine(DEVICE), "gpu_before": before, "gpu_after": gpu_state()}
        found |= {"repeats": options.repeats, "timing": "single launches, median"}
        options.json.write_text(json.dumps(found | {"rows": [asdict(row) for row in bench.rows]}, indent=2) + "\n")
    own = (row for row in bench.rows if row.kernel.startswith(("sparse", "block sums")))
    return int(any(row.problem for row in own))


if __name__ == "__main__":
    sys.exit(main())

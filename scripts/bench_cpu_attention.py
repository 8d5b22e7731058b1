"""How much faster the CPU operators are where blocks are left out.

    python -m scripts.bench_cpu_attention

One table: dense SDPA, the better dense path, block-sparse attention at 80 % sparsity (equal counts and head-adaptive
ones), the search. All are called in turn, round after round, so that a busy machine slows all of them; the minimum
and the median of the rounds are printed, and ratios of minima. Before a time counts, the sparse result is compared
with the reference.

Shapes: [1, 4, tokens, 64], blocks of 64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from adaspa_cli.attention import BlockMask, cpu, reference
from adaspa_cli.report.machine import machine, versions

HEADS, HEAD_DIM, BLOCK = 4, 64, (64, 64)
SCALE = HEAD_DIM**-0.5


def random_mask(tokens: int, densities: list[float]) -> BlockMask:
    """Every row of a head keeps the same number of random blocks."""
    blocks = -(-tokens // BLOCK[1])
    order = torch.rand(HEADS, blocks, blocks, generator=torch.Generator().manual_seed(0)).argsort(-1)
    kept = torch.tensor([round(density * blocks) for density in densities])
    return BlockMask.from_bool(order < kept[:, None, None], BLOCK)


def variants(tokens: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, HEADS, tokens, HEAD_DIM, generator=generator).to(dtype) for _ in range(3))
    equal, adaptive = random_mask(tokens, [0.2] * 4), random_mask(tokens, [0.1, 0.2, 0.2, 0.3])
    check(q, k, v, equal)
    lse = cpu.dense_attention(q, k, v, SCALE)[1]
    return {
        "dense, SDPA": lambda: F.scaled_dot_product_attention(q, k, v),
        "dense, better path": lambda: cpu.dense_attention(q, k, v, SCALE),
        "sparse 80 %": lambda: cpu.block_sparse_attention(q, k, v, equal, SCALE),
        "sparse 80 %, head-adaptive": lambda: cpu.block_sparse_attention(q, k, v, adaptive, SCALE),
        "dense and block sums": lambda: cpu.attention_with_block_sums(q, k, v, BLOCK, SCALE),
        "block sums": lambda: cpu.block_sums(q, k, lse, BLOCK, SCALE),
    }


def check(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> None:
    """Refuse to time a wrong result."""
    out, _ = cpu.block_sparse_attention(q, k, v, mask, SCALE)
    truth, _ = reference.block_sparse_attention(q.float(), k.float(), v.float(), mask, SCALE)
    error = float((out.float() - truth).norm() / truth.norm())
    allowed = 1e-5 if q.dtype == torch.float32 else 1e-2
    if not error < allowed:
        raise SystemExit(f"wrong result in {q.dtype}: relative error {error:.1e}, at most {allowed:.0e} allowed")


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round, after two rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if number >= 2:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return times


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 9216])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    print(versions(), machine(torch.device("cpu")).line())
    for tokens in options.tokens:
        for dtype in (torch.float32, torch.bfloat16):
            times = measure(variants(tokens, dtype), options.rounds)
            print(f"\n{tokens} tokens, {dtype}, {HEADS} heads x {HEAD_DIM}")
            print(f"{'':<28}{'min ms':>9}{'median':>9}{'SDPA/this':>11}{'dense/this':>12}")
            best = {name: min(values) for name, values in times.items()}
            for name, values in times.items():
                ratios = best["dense, SDPA"] / best[name], best["dense, better path"] / best[name]
                print(
                    f"{name:<28}{best[name]:>9.1f}{statistics.median(values):>9.1f}{ratios[0]:>11.2f}{ratios[1]:>12.2f}"
                )


if __name__ == "__main__":
    main()

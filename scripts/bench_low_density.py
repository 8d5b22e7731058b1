"""The kernels as a layer-wide budget uses them: 5 to 20 % of the blocks, uneven lists, summaries, some rows searched.

    PYTHONPATH=.:kernels python -m scripts.bench_low_density --json low-density.json

Masks: ``uniform`` as in bench_kernels; ``budget`` rows keep counts from a lognormal distribution, heads up to three
times the mean, no row less than a quarter of it, neighbours mostly the same blocks, and four rows everything, as text.
Each is timed without and with summaries of what it leaves out; the difference is what these cost. ``by length``
schedules rows by length alone, over all heads.

Results are compared with float64 in sampled rows before anything is timed. Timings as in bench_kernels: *single*
launches, and *sustained*. TFLOP/s counts kept blocks, and with summaries one key more for each block.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import adaspa_kernels
from adaspa_cli.attention import TokenLayout, dense, resolve
from adaspa_cli.attention.block_mask import BlockMask, index_dtype
from adaspa_cli.attention.compensated import Compensation, compensated_attention
from adaspa_cli.files.typed_json import to_json
from adaspa_cli.report.machine import machine, versions
from adaspa_kernels import hopper_block_sparse, schedule, summaries
from scripts import bench_kernels
from scripts.bench_kernels import DEVICE, TEXT_ROWS, Inputs, gpu_state, measure, samples

BLOCK = 64
OUTPUT_ERROR, LSE_ERROR, SUMS_ERROR = 1e-2, 2e-3, 2e-3


def budget(tokens: int, heads: int, density: float) -> BlockMask:
    """Counts of a layer-wide budget: [H, Nq] lognormal, of a mean of ``density``."""
    blocks = -(-tokens // BLOCK)
    generator = torch.Generator(DEVICE).manual_seed(1)
    normal = partial(torch.randn, generator=generator, device=DEVICE)
    of_head = (0.7 * normal(heads, 1)).exp()
    of_row = F.avg_pool1d((1.5 * normal(heads, 1, blocks)), 9, 1, 4).exp()[:, 0]
    shares = (of_head / of_head.mean()).clamp(1 / 3, 3) * of_row
    base = density * blocks
    counts = (shares / shares.mean() * base).clamp(base / 4, blocks).round().int()
    indices = torch.zeros(heads, blocks, int(counts.max()), dtype=index_dtype(blocks), device=DEVICE)
    for head in range(heads):
        scores = torch.rand(blocks, blocks, generator=generator, device=DEVICE)
        ranks = F.avg_pool1d(scores.T[None], 9, 1, 4)[0].T.argsort(-1, descending=True).argsort(-1)
        flags = ranks < counts[head, :, None]
        places = torch.where(flags, flags.cumsum(-1) - 1, indices.shape[-1])
        row = torch.zeros(blocks, indices.shape[-1] + 1, dtype=indices.dtype, device=DEVICE)
        every = torch.arange(blocks, device=DEVICE).to(indices.dtype).expand(blocks, blocks)
        indices[head] = row.scatter_(-1, places, every)[:, :-1]
    counts[:, -TEXT_ROWS:] = blocks
    return BlockMask(counts, indices, blocks, (BLOCK, BLOCK))


def by_length(counts: Tensor, teams: int) -> Tensor:
    """The schedule of before: the longest rows first, whatever their head."""
    lengths = counts.reshape(-1).long()
    order = torch.argsort(lengths, descending=True, stable=True)
    lengths = lengths[order]
    later = torch.cat([lengths[teams:], lengths[-1:].expand(min(teams, len(lengths)))])
    return order | lengths << 32 | (lengths * 4 > later * 5).long() << 62


@contextmanager
def instead(**replaced: Any) -> Iterator[None]:
    """Names of the Hopper launcher, replaced for a while."""
    before = {name: getattr(hopper_block_sparse, name) for name in replaced}
    try:
        for name, value in replaced.items():
            setattr(hopper_block_sparse, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(hopper_block_sparse, name, value)


def attend(x: Inputs, kept: BlockMask, pooled: summaries.Summaries | None) -> tuple[Tensor, ...]:
    return adaspa_kernels.block_sparse_attention(
        x.q, x.k, x.v, kept.counts, kept.indices,
        key_blocks=kept.key_blocks, block_size=kept.block_size, scale=x.scale, summaries=pooled, path="hopper",
    )  # fmt: skip


def attention_error(x: Inputs, kept: BlockMask, pooled: summaries.Summaries, out: Tensor, lse: Tensor) -> float:
    """Relative error of sampled rows against float64 over kept keys and summaries; infinite where the LSE is wrong."""
    flags = kept.to_bool()
    video = torch.zeros(kept.key_blocks, dtype=torch.bool, device=DEVICE)
    video[pooled.video.start : pooled.video.stop] = True
    worst = 0.0
    for head, row in samples(kept.query_blocks):
        rows = slice(row * BLOCK, min((row + 1) * BLOCK, x.q.shape[2]))
        logits = bench_kernels.exact_logits(x, head, rows, flags[head, row], BLOCK)
        more = x.q[0, head, rows].double() @ pooled.keys[0, head].double().T * x.scale
        more += torch.tensor(float(BLOCK)).log()
        logits = torch.cat([logits, more.masked_fill(flags[head, row] | ~video, -torch.inf)], -1)
        values = torch.cat([x.v[0, head], pooled.values[0, head]]).double()
        truth = torch.softmax(logits, -1) @ values
        error = float((out[0, head, rows].double() - truth).norm() / truth.norm())
        difference = float((lse[0, head, rows].double() - torch.logsumexp(logits, -1)).abs().max())
        worst = max(worst, error if difference <= LSE_ERROR and error == error else float("inf"))
    return worst


class Table:
    """Rows as they are measured: printed at once, kept for JSON."""

    def __init__(self, repeats: int) -> None:
        self.repeats, self.rows = repeats, []  # type: ignore[var-annotated]

    def add(self, name: str, call: Callable[[], object], flops: float = 0, size: float = 0) -> float:
        single, spread, sustained = measure(call, self.repeats)
        row = {"name": name, "ms": single, "spread": spread, "sustained_ms": sustained}
        text = f"{name:<52}{single:9.3f} ms {spread:6.1%}  sustained {sustained:9.3f} ms"
        if flops:
            row |= {"teraflops": flops / single / 1e9, "sustained_teraflops": flops / sustained / 1e9}
            text += f"{row['teraflops']:6.0f} {row['sustained_teraflops']:4.0f} TFLOP/s"
        if size:
            row["terabytes"] = size / single / 1e9
            text += f"{row['terabytes']:6.2f} TB/s"
        self.rows.append(row)
        print(text, flush=True)
        return single


def gate(name: str, error: float, allowed: float) -> None:
    print(f"gate: {name:<46} error {error:.1e}, at most {allowed:.0e}", flush=True)
    if not error <= allowed:
        raise SystemExit(f"wrong result: {name}")


def bench_sparse(table: Table, options: argparse.Namespace, x: Inputs, tokens: int, head_dim: int) -> None:
    video = range(-(-tokens // BLOCK) - TEXT_ROWS)
    work = 4.0 * tokens * tokens * head_dim * x.q.shape[1]
    for kind in ("uniform", "budget"):
        for density in options.densities:
            if kind == "uniform":
                kept = bench_kernels.mask("uniform", tokens, BLOCK, density)
            else:
                kept = budget(tokens, x.q.shape[1], density)
            share = float(kept.density().mean())
            pooled = adaspa_kernels.summarise(
                x.k, x.v, kept.counts, kept.indices, block_size=kept.block_size, video=video
            )
            name = f"D={head_dim} {kind} {share:.1%}"
            gate(f"{name}, summaries", attention_error(x, kept, pooled, *attend(x, kept, pooled)[:2]), OUTPUT_ERROR)
            none = bench_kernels.attention_error(x, *attend(x, kept, None), kept)
            gate(name, none, OUTPUT_ERROR)
            without = partial(attend, x, kept, None)
            plain = table.add(name, without, work * share)
            both = work * (share + 1 / BLOCK)
            with_them = table.add(f"{name}, summaries", partial(attend, x, kept, pooled), both)
            print(f"{'':<52}{with_them - plain:9.3f} ms for the summaries")
            if kind == "budget":
                teams = 132 * (2 if head_dim == 128 else 3)
                order = by_length(kept.counts, teams)
                with instead(kept_schedule=lambda *_, order=order: order):
                    table.add(f"{name}, by length", without, work * share)
            for package in options.packages:
                other = partial(
                    importlib.import_module(package).block_sparse_attention, x.q, x.k, x.v, kept.counts, kept.indices,
                    key_blocks=kept.key_blocks, block_size=kept.block_size, scale=x.scale, path="hopper",
                )  # fmt: skip
                table.add(f"{name}, {package}", other, work * share)


def bench_plus(table: Table, options: argparse.Namespace) -> None:
    """A layer of adaspa-plus at HunyuanVideo's 720x1280x129, called as the engine calls it, and its search."""
    layout = TokenLayout(33, 45, 80, 256, "last")
    x = bench_kernels.inputs(layout.tokens, 128)
    backend = resolve("triton", DEVICE)
    full = 4.0 * layout.tokens**2 * 128 * options.heads
    dense_ms = table.add("dense", lambda: backend.dense(x.q, x.k, x.v, x.scale), full)
    _, lse = backend.dense(x.q, x.k, x.v, x.scale)
    for row_stride in (1, 8):
        sums = table.add(
            f"cached search, stride {row_stride}",
            lambda n=row_stride: backend.sums(x.q, x.k, lse, (BLOCK, BLOCK), x.scale, n),
            full / 2 / row_stride,
        )
        search = table.add(
            f"fused search, stride {row_stride}",
            lambda n=row_stride: backend.search(x.q, x.k, x.v, (BLOCK, BLOCK), x.scale, n),
            full + full / 2 / row_stride,
        )
        print(f"{'':<52}{sums / dense_ms:.3f} and {search / dense_ms:.3f} of dense attention")
    hidden = torch.randn(1, layout.tokens, 24 * 128, device=DEVICE, dtype=x.q.dtype)
    order = torch.randperm(layout.tokens, device=DEVICE)
    table.add("permutation of the tokens, one way", lambda: hidden.index_select(1, order), size=4.0 * hidden.numel())
    pieces = {
        "sparse": Compensation(),
        "with remainder": Compensation(pooled=True),
        "with remainder and 64 probes": Compensation(pooled=True, probes=64),
        "with remainder and 128 probes": Compensation(pooled=True, probes=128),
    }
    for density in (0.05, 0.1):
        kept = budget(layout.tokens, options.heads, density)
        share = float(kept.density().mean())
        for name, compensation in pieces.items():
            call = partial(
                compensated_attention, x.q, x.k, x.v, kept, layout, x.scale, backend=backend, compensation=compensation
            )
            table.add(f"layer {share:.1%}, {name}", call)


def bench_parts(table: Table, x: Inputs, tokens: int, head_dim: int) -> None:
    """What goes with a sparse call: summaries, words, the schedule; and the search."""
    heads, blocks = x.q.shape[1], -(-tokens // BLOCK)
    kept = budget(tokens, heads, 0.1)
    keys, values = summaries.block_means(x.k, x.v, BLOCK)
    for means, source in ((keys, x.k), (values, x.v)):
        whole = tokens // BLOCK * BLOCK
        truth = source[0, 0, :whole].double().view(-1, BLOCK, head_dim).mean(1)
        error = float((means[0, 0, : len(truth)].double() - truth).norm() / truth.norm())
        gate(f"D={head_dim} means of blocks", error, OUTPUT_ERROR)
    size = 2.0 * x.k.numel() * x.k.element_size()
    table.add(f"D={head_dim} means of blocks of k and v", lambda: summaries.block_means(x.k, x.v, BLOCK), size=size)
    table.add(
        f"D={head_dim} words of a mask of 10 %",
        lambda: summaries.closed_words(kept.counts, kept.indices, blocks, range(blocks - TEXT_ROWS)),
    )
    table.add(f"D={head_dim} schedule", lambda: schedule.schedule(kept.counts[None], blocks, 264))
    attend(x, kept, None)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(5):
        attend(x, kept, None)
    print(f"{'':<52}{(time.perf_counter() - begin) / 5 * 1000:9.3f} ms of the CPU for a sparse call")

    _, lse = dense.dense_attention(x.q, x.k, x.v, x.scale)
    work = 2.0 * tokens * tokens * head_dim * heads
    for row_stride in (1, 8):
        name = f"D={head_dim} block sums, stride {row_stride}"
        call = partial(
            adaspa_kernels.block_sums, x.q, x.k, lse,
            block_size=(BLOCK, BLOCK), scale=x.scale, row_stride=row_stride, path="hopper",
        )  # fmt: skip
        gate(name, _sums_error(x, lse, call(), row_stride), SUMS_ERROR)
        table.add(name, call, work / row_stride)


def _sums_error(x: Inputs, lse: Tensor, sums: Tensor, row_stride: int) -> float:
    worst = 0.0
    for head, row in samples(sums.shape[2]):
        rows = slice(row * BLOCK, min((row + 1) * BLOCK, x.q.shape[2]), row_stride)
        weights = torch.exp(bench_kernels.exact_logits(x, head, rows, None, BLOCK) - lse[0, head, rows, None].double())
        real = min(BLOCK, x.q.shape[2] - row * BLOCK)
        per_key = weights.sum(0) * real / weights.shape[0]
        truth = F.pad(per_key, (0, -x.k.shape[2] % BLOCK)).view(-1, BLOCK).sum(-1)
        error = float((sums[0, head, row].double() - truth).norm() / truth.norm())
        worst = max(worst, error if error == error else float("inf"))
    return worst


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dims", type=int, nargs="+", choices=sorted(bench_kernels.TOKENS), default=[128, 64])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--packages", nargs="*", default=[], help="also the sparse kernels of these packages")
    parser.add_argument("--plus", action="store_true", help="only layers of adaspa-plus at HunyuanVideo's size")
    parser.add_argument("--no-dense", action="store_true")
    parser.add_argument("--json", type=Path, help="write all rows there")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if not torch.cuda.is_available():
        print("bench_low_density needs a CUDA device", file=sys.stderr)
        return 1
    bench_kernels.HEADS = options.heads
    bench_kernels.SUSTAINED_SECONDS = 0.3
    print(versions(), machine(DEVICE).line(), gpu_state(), sep="\n")
    table = Table(options.repeats)
    if options.plus:
        bench_plus(table, options)
    for head_dim in [] if options.plus else options.head_dims:
        tokens = options.tokens or bench_kernels.TOKENS[head_dim]
        x = bench_kernels.inputs(tokens, head_dim)
        if not options.no_dense:
            full = 4.0 * tokens * tokens * head_dim * options.heads
            table.add(f"D={head_dim} dense", lambda x=x: dense.dense_attention(x.q, x.k, x.v, x.scale), full)
        bench_parts(table, x, tokens, head_dim)
        bench_sparse(table, options, x, tokens, head_dim)
    print(gpu_state())
    if options.json:
        found = {"versions": versions(), "machine": to_json(machine(DEVICE)), "repeats": options.repeats}
        found["command"] = shlex.join(["python", "-m", "scripts.bench_low_density", *sys.argv[1:]])
        options.json.write_text(json.dumps(found | {"rows": table.rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How fast the linear layers of a HunyuanVideo step at 720x1280x129 are in FP8, next to bfloat16.

    PYTHONPATH=.:kernels python -m scripts.bench_linear --json linear.json

Every product of a dual block (20 a step) and of a single block (40): in bfloat16; in FP8 with the quantisation of its
input, once for q, k and v; and, where GELU comes before, both again with the GELU: one more pass in bfloat16, part of
the quantiser in FP8. The last lines sum each of these over a step. The quantiser is timed alone as well, next to a copy
of as many bytes and, with ``--compiled``, to the same in PyTorch through ``torch.compile``.

No time without a right result: sampled rows of the quantiser must be PyTorch's bit by bit, products those of the
quantised values (1e-2, relative to the norm) and near the exact ones (5e-2). Timing: as in ``bench_kernels``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import adaspa_kernels
from adaspa_cli.files.typed_json import to_json
from adaspa_cli.models.fp8_linear import Fp8Linear, SharedInput, quantise_by_torch
from adaspa_cli.report.machine import machine, versions
from scripts.bench_kernels import gpu_state, measure

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
VIDEO, TEXT, WIDTH, MLP = 118_800, 256, 3072, 12_288
PRODUCT_ERROR, EXACT_ERROR = 1e-2, 5e-2  # relative to the norm
SAMPLES = 64  # rows that are checked, of both ends


@dataclass(frozen=True)
class Product:
    """Linear layers on one input [tokens, inputs], of which the last ``gelu`` channels come from GELU."""

    name: str
    tokens: int
    inputs: int
    outputs: int
    calls: int  # in a step
    together: int = 1
    gelu: int = 0

    @property
    def flops(self) -> float:
        return 2.0 * self.tokens * self.inputs * self.outputs * self.together


@dataclass
class Row:
    """One line of the table: milliseconds, or why there are none."""

    name: str
    way: str
    tokens: int
    inputs: int
    outputs: int = 0
    calls: int = 0
    gelu: int = 0
    milliseconds: float | None = None
    spread: float | None = None
    sustained_milliseconds: float | None = None
    teraflops: float | None = None
    gigabytes: float | None = None  # per second
    error: float | None = None
    problem: str | None = None


def products(video: int = VIDEO, text: int = TEXT) -> list[Product]:
    """All linear layers of the blocks of a step."""
    dual = [
        product
        for kind, tokens in (("video", video), ("text", text))
        for product in (
            Product(f"dual {kind}: q, k, v", tokens, WIDTH, WIDTH, 20, together=3),
            Product(f"dual {kind}: attention out", tokens, WIDTH, WIDTH, 20),
            Product(f"dual {kind}: feed-forward in", tokens, WIDTH, MLP, 20),
            Product(f"dual {kind}: feed-forward out", tokens, MLP, WIDTH, 20, gelu=MLP),
        )
    ]
    return [
        *dual,
        Product("single: q, k, v", video + text, WIDTH, WIDTH, 40, together=3),
        Product("single: feed-forward in", video + text, WIDTH, MLP, 40),
        Product("single: out", video + text, WIDTH + MLP, WIDTH, 40, gelu=MLP),
    ]


def sampled(x: Tensor) -> Tensor:
    """Rows of both ends."""
    return torch.cat([x[: SAMPLES // 2], x[-SAMPLES // 2 :]])


def relative(found: Tensor, truth: Tensor) -> float:
    error = float((found.double() - truth.double()).norm() / truth.double().norm())
    return error if error == error else float("inf")


def fill(row: Row, call: Callable[[], object], repeats: int, *, flops: float = 0.0, moved: float = 0.0) -> Row:
    """Time a call, of so many operations or bytes of memory."""
    row.milliseconds, row.spread, row.sustained_milliseconds = measure(call, repeats)
    row.teraflops = flops / row.milliseconds / 1e9 if flops else None
    row.gigabytes = moved / row.milliseconds / 1e6 if moved else None
    return row


def problem(row: Row, layers: Sequence[nn.Linear], found: Sequence[Tensor], x: Tensor, gelu_from: int | None) -> bool:
    """Note what is wrong with FP8 products of sampled rows; x is the input before GELU."""
    rows = sampled(x)
    q, scale = adaspa_kernels.quantise_rows(rows, gelu_from=gelu_from)
    right_q, right_scale = quantise_by_torch(rows, gelu_from)
    if gelu_from is None and not (
        torch.equal(q.view(torch.uint8), right_q.view(torch.uint8)) and torch.equal(scale, right_scale)
    ):
        row.problem = "wrong result: the quantised rows are not PyTorch's"
        return True
    exact = rows.double()
    if gelu_from is not None:
        exact = torch.cat([exact[:, :gelu_from], F.gelu(exact[:, gelu_from:], approximate="tanh")], 1)
    for layer, out in zip(layers, found, strict=True):
        emulated = Fp8Linear(layer, emulate=True, gelu_from=gelu_from)(rows)
        truth = F.linear(exact, layer.weight.double(), None if layer.bias is None else layer.bias.double())
        to_same, row.error = relative(sampled(out), emulated), relative(sampled(out), truth)
        if not (to_same <= PRODUCT_ERROR and row.error <= EXACT_ERROR):
            row.problem = f"wrong result: error {to_same:.1e} to the same values, {row.error:.1e} to the exact product"
            return True
    return False


@torch.inference_mode()
def bench_product(product: Product, repeats: int, show: Callable[[Row], None]) -> None:
    """All ways of one product."""
    torch.manual_seed(0)
    layers = [nn.Linear(product.inputs, product.outputs, device=DEVICE, dtype=DTYPE) for _ in range(product.together)]
    x = torch.randn(product.tokens, product.inputs, device=DEVICE, dtype=DTYPE)
    about = Row(product.name, "", product.tokens, product.inputs, product.outputs * product.together, product.calls)
    timed = partial(fill, repeats=repeats, flops=product.flops)
    row = partial(Row, **{k: v for k, v in asdict(about).items() if k not in ("way", "gelu")})

    def plain() -> list[Tensor]:
        return [layer(x) for layer in layers]

    show(timed(row(way="bf16"), plain))
    before = product.inputs - product.gelu
    for gelu_from in [None] if not product.gelu else [None, before]:
        shared = SharedInput() if product.together > 1 else None
        ours = [Fp8Linear(layer, emulate=False, gelu_from=gelu_from, shared=shared) for layer in layers]

        def fp8(ours: Sequence[nn.Module] = ours) -> list[Tensor]:
            return [layer(x) for layer in ours]

        found = row(way="fp8", gelu=0 if gelu_from is None else product.gelu)
        show(found if problem(found, layers, fp8(), x, gelu_from) else timed(found, fp8))
    if product.gelu:
        hidden = x[:, before:].contiguous()
        activated = lambda: (F.gelu(hidden, approximate="tanh"), plain())  # noqa: E731
        show(timed(row(way="bf16", gelu=product.gelu), activated))


@torch.inference_mode()
def bench_quantiser(tokens: int, repeats: int, compiled: bool, show: Callable[[Row], None]) -> None:
    """The quantiser alone, next to a copy of as many bytes."""
    for columns, gelu in ((WIDTH, 0), (MLP, 0), (MLP, MLP), (WIDTH + MLP, 0), (WIDTH + MLP, MLP)):
        x = torch.randn(tokens, columns, device=DEVICE, dtype=DTYPE)
        moved = 3.0 * x.numel()  # two bytes read, one written
        row = partial(Row, "quantise", tokens=tokens, inputs=columns, gelu=gelu)
        gelu_from = columns - gelu if gelu else None
        found = row(way="kernel")
        checked = problem(found, [], [], x, gelu_from)
        quantise = partial(adaspa_kernels.quantise_rows, x, gelu_from=gelu_from)
        show(found if checked else fill(found, quantise, repeats, moved=moved))
        if gelu:
            continue
        half = x.view(torch.uint8)[:, : columns * 3 // 2]
        target = torch.empty_like(half, memory_format=torch.contiguous_format)
        source = half.contiguous()
        show(fill(row(way="copy"), lambda: target.copy_(source), repeats, moved=moved))  # noqa: B023
        if compiled:
            by_torch = torch.compile(quantise_by_torch, dynamic=False)
            show(fill(row(way="torch.compile"), lambda: by_torch(x), repeats, moved=moved))  # noqa: B023


def sums(rows: Sequence[Row]) -> dict[str, float]:
    """Seconds of all products of a step, by way; a product without GELU counts in both. Empty if one has no time."""
    timed = [row for row in rows if row.calls]
    if any(row.problem for row in timed):
        return {}
    has_gelu = {row.name for row in timed if row.gelu}
    found: dict[str, float] = {}
    for way in ("bf16", "fp8"):
        for with_gelu in (False, True):
            chosen = (r for r in timed if r.way == way and bool(r.gelu) == (with_gelu and r.name in has_gelu))
            name = f"{way}, with GELU" if with_gelu else way
            found[name] = sum((row.sustained_milliseconds or 0.0) * row.calls for row in chosen) / 1000
    return found


HEADER = (
    f"{'product':<27}{'way':<15}{'tokens':>8}{'inputs':>8}{'outputs':>8}{'GELU':>7}"
    f"{'ms':>9}{'spread':>8}{'sustained':>11}{'TFLOP/s':>9}{'GB/s':>8}{'error':>8}"
)


def line(row: Row) -> str:
    start = f"{row.name:<27}{row.way:<15}{row.tokens:>8}{row.inputs:>8}{row.outputs or '-':>8}{row.gelu or '-':>7}"
    if row.problem or row.milliseconds is None:
        return f"{start}  {row.problem}"
    speed = "-" if row.teraflops is None else f"{row.teraflops:.0f}"
    bandwidth = "-" if row.gigabytes is None else f"{row.gigabytes:.0f}"
    error = "-" if row.error is None else f"{row.error:.1%}"
    return (
        f"{start}{row.milliseconds:>9.3f}{row.spread:>8.1%}{row.sustained_milliseconds:>11.3f}"
        f"{speed:>9}{bandwidth:>8}{error:>8}"
    )


def sum_lines(found: dict[str, float]) -> list[str]:
    lines = [f"a step, {name}: {seconds:.3f} s" for name, seconds in found.items()]
    for ending in ("", ", with GELU"):
        if found.get(f"fp8{ending}"):
            lines.append(f"ratio{ending}: {found[f'bf16{ending}'] / found[f'fp8{ending}']:.2f}")
    return lines


def as_json(rows: Sequence[Row], step: dict[str, float], about: dict[str, Any]) -> str:
    """All figures, with the machine and what else there is to say ``about`` the run."""
    found = {"versions": versions(), "machine": to_json(machine(DEVICE)), **about, "step_seconds": step}
    return json.dumps(found | {"rows": [asdict(row) for row in rows]}, indent=2) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=VIDEO, help="of the video")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compiled", action="store_true", help="the quantiser through torch.compile too")
    parser.add_argument("--json", type=Path, help="write all rows there")
    return parser.parse_args()


def main() -> int:
    """Print the table; 1 where a result was wrong."""
    options = arguments()
    if not torch.cuda.is_available():
        print("bench_linear needs a CUDA device", file=sys.stderr)
        return 1
    before, rows = gpu_state(), list[Row]()

    def show(row: Row) -> None:
        rows.append(row)
        print(line(row), file=sys.stderr, flush=True)

    bench_quantiser(options.tokens, options.repeats, options.compiled, show)
    for product in products(options.tokens):
        bench_product(product, options.repeats, show)
    print(f"{versions()}\n{machine(DEVICE).line()}\nGPU before: {before}\nGPU after:  {gpu_state()}\n\n{HEADER}")
    step = sums(rows)
    print("\n".join([*map(line, rows), *sum_lines(step)]))
    if options.json:
        about = {"gpu_before": before, "gpu_after": gpu_state(), "repeats": options.repeats}
        options.json.write_text(as_json(rows, step, about))
    return int(any(row.problem for row in rows))


if __name__ == "__main__":
    sys.exit(main())

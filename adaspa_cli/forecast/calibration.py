"""How fast this machine is: a few operators of a run, timed at a reduced length in its dtype, and scaled by their work.

Each rate is a median of a few calls after one that warms up; together they take seconds at most.

Shapes: H heads of the sample, L tokens of it, D head dimension, C channels.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from adaspa_cli.attention import Backend, TokenLayout
from adaspa_cli.attention.compensated import NO_COMPENSATION, Compensation
from adaspa_cli.hooks.timing import Stopwatch
from adaspa_cli.masks import Call, FoundMask, MaskPolicy
from adaspa_cli.sampling.sparse import attend_sparsely

RUNS = 15
ENOUGH = 0.5  # seconds, after which a call is not repeated


@dataclass(frozen=True)
class Lengths:
    """How much is measured at most.

    Attributes:
        tokens, heads: of attention: long enough for the operators' speed at full length.
        rows: tokens of the products, and of what goes with them.
        multiplications: of a matrix product.
    """

    tokens: int
    heads: int
    rows: int
    multiplications: float


ON_CPU, ELSEWHERE = Lengths(4096, 2, 2048, 4e9), Lengths(16_384, 8, 16_384, 2e12)


@dataclass(frozen=True)
class Rates:
    """Seconds of each kind of work. A pair is a query and a key of one head.

    Attributes:
        flop: a floating-point operation of linear layers.
        channel: norms, modulation, rotation and GELU of one channel of one token in one layer.
        dense: a pair of dense attention.
        sparse: a pair of a kept block.
        search: a pair, for block sums and the choice from them.
        estimate: a pair, for a mask that is estimated in the call itself.
        pooled: a pair, for the summaries of left-out blocks.
        repair: a query token of one head, for the repair by probes.
        tokens: L.
        seconds: that the calibration took.
    """

    flop: float
    channel: float
    dense: float
    sparse: float = 0.0
    search: float = 0.0
    estimate: float = 0.0
    pooled: float = 0.0
    repair: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Sample:
    """What is to be measured.

    Attributes:
        device, dtype: of the run.
        backend: runs its operators.
        layout: of its token sequence.
        heads, head_dim: of its model.
        policy: of the masks that it searches or estimates; None for a run without sparse calls.
        sparse_step: a typical step of those that attend sparsely.
        searches, estimates: whether it does.
    """

    device: torch.device
    dtype: torch.dtype
    backend: Backend
    layout: TokenLayout
    heads: int
    head_dim: int
    policy: MaskPolicy | None = None
    sparse_step: int = 0
    searches: bool = False
    estimates: bool = False


def reduced(layout: TokenLayout, tokens: int) -> TokenLayout:
    """The same kind of sequence with about so many tokens at most; text keeps its share."""
    if layout.tokens <= tokens:
        return layout
    share = tokens / layout.tokens
    side = share ** (1 / 3)
    frames, height, width = (max(1, int(size * side)) for size in (layout.frames, layout.height, layout.width))
    text = max(1, int(layout.text_tokens * share)) if layout.text_tokens else 0
    return dataclasses.replace(layout, frames=frames, height=height, width=width, text_tokens=text)


@torch.no_grad()
def calibrate(sample: Sample) -> Rates:
    """Measure the rates that a run needs; random numbers stand for its activations."""
    most = ON_CPU if sample.device.type == "cpu" else ELSEWHERE
    layout, heads = reduced(sample.layout, most.tokens), min(sample.heads, most.heads)
    random = torch.Generator(sample.device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=sample.device, dtype=sample.dtype)

    with Stopwatch(sample.device) as whole:
        rows, channels = min(sample.layout.tokens, most.rows), sample.heads * sample.head_dim
        x, wide = draw(rows, channels), draw(rows, 4 * channels)
        weight = draw(min(4 * channels, max(64, int(most.multiplications / x.numel()))), channels)
        product = _seconds(lambda: F.linear(x, weight), sample.device)
        rest = _seconds(lambda: _elementwise(x, wide, sample.heads), sample.device)
        q, k, v = (draw(1, layout.tokens, heads, sample.head_dim).transpose(1, 2) for _ in range(3))
        pairs = layout.tokens**2 * heads
        dense = _seconds(lambda: sample.backend.dense(q, k, v, sample.head_dim**-0.5), sample.device)
        sparse = {} if sample.policy is None else _sparse_rates(sample, sample.policy, layout, q, k, v)
    return Rates(
        flop=product / (2 * x.numel() * len(weight)),
        channel=rest / x.numel(),
        dense=dense / pairs,
        **sparse,
        tokens=layout.tokens,
        seconds=whole.span.seconds(),
    )


def _sparse_rates(
    sample: Sample, policy: MaskPolicy, layout: TokenLayout, q: Tensor, k: Tensor, v: Tensor
) -> dict[str, float]:
    """Rates of sparse calls, with a mask of the method's own."""
    scale, device, pairs = 1 / math.sqrt(q.shape[-1]), sample.device, q.shape[1] * q.shape[2] ** 2
    call = Call(0, sample.sparse_step, "cond", 0, layout)
    rates: dict[str, float] = {}
    found: list[FoundMask] = []
    if sample.estimates:

        def estimate() -> None:
            found.append(policy.estimate(call, q, k, v, scale))

        rates["estimate"] = _seconds(estimate, device) / pairs
    else:
        lse = sample.backend.dense(q, k, v, scale)[1]

        def search() -> None:
            sums = sample.backend.sums(q, k, lse, policy.block_size, scale, policy.search_rows)
            found.append(policy.choose(call, sums, v))

        taken = _seconds(search, device)
        rates["search"] = taken / pairs if sample.searches else 0.0
    mask = found[-1]
    density = mask.mask.density()

    def sparse(compensation: Compensation) -> float:
        return _seconds(
            lambda: attend_sparsely(
                q, k, v, mask, density, layout, backend=sample.backend, compensation=compensation
            ),
            device,
        )  # fmt: skip

    wanted = policy.compensation
    plain = sparse(NO_COMPENSATION)
    rates["sparse"] = plain / (pairs * max(float(density.mean()), 1 / pairs))
    pooled = plain
    if wanted.pooled:
        pooled = sparse(Compensation(pooled=True))
        rates["pooled"] = max(0.0, pooled - plain) / pairs
    if wanted.probes:
        rates["repair"] = max(0.0, sparse(wanted) - pooled) / (q.shape[1] * q.shape[2])
    return rates


def _elementwise(x: Tensor, wide: Tensor, heads: int) -> None:
    """What a block does beside products and attention, about: two norms with modulation and gate, norm and rotation
    of queries and keys, and a GELU on four times the channels; x [L, C], wide [L, 4 C]."""
    for _ in range(2):
        x = x + x * (F.layer_norm(x, x.shape[-1:]) * (1 + x) + x)
    for _ in range(2):
        rows = x.view(len(x), heads, -1)
        turned = F.rms_norm(rows, rows.shape[-1:]).float()
        (turned * turned + turned.roll(1, -1) * turned).to(x.dtype)
    F.gelu(wide, approximate="tanh")


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median of a few calls, after one that is not counted: it may build kernels."""
    work()
    times: list[float] = []
    while len(times) < RUNS and sum(times) < ENOUGH:
        with Stopwatch(device) as watch:
            work()
        times.append(watch.span.seconds())
    return statistics.median(times)

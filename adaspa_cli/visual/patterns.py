"""The patterns that the paper compares at one sparsity (AdaSpa, arXiv 2502.21079, figure 5), and the recall of each.

Every pattern keeps the same share of the weights among video tokens: the heaviest single weights (the oracle, TopK),
blocks, columns, diagonals, or columns with half of the share and diagonals with the rest. A picture shows what a
pattern leaves of the weights; its recall is that mass over the whole.

Shapes: A [L, L] weights of one head, made [n, L] at a time; diagonal d of 2L - 1 holds A[i, i + d - (L - 1)].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.masks.token_order import token_places
from adaspa_cli.visual.weights import HeadWeights, Keep

_BINS = 1 << 15  # of positive floats, by their leading 16 bits


@dataclass(frozen=True)
class Pattern:
    """What a pattern leaves of the weights, and the share of their mass that this is."""

    keep: Keep
    recall: float


@dataclass(frozen=True)
class Masses:
    """Sums over A that patterns are chosen by, float64.

    Attributes:
        columns: mass of each column [L].
        diagonals: mass of each diagonal [2L - 1].
        count, mass: how many weights there are, and what they sum to, by their leading 16 bits [32768].
    """

    columns: Tensor
    diagonals: Tensor
    count: Tensor
    mass: Tensor

    @property
    def total(self) -> float:
        return float(self.columns.sum())


def measure(weights: HeadWeights) -> Masses:
    """Sum the weights by column, diagonal and size, in one pass."""
    length, device = weights.tokens, weights.q.device
    columns, diagonals, count, mass = (
        torch.zeros(size, dtype=torch.float64, device=device) for size in (length, 2 * length - 1, _BINS, _BINS)
    )
    for start, rows in weights.rows():
        columns += rows.sum(0, dtype=torch.float64)
        _add_diagonals(diagonals, start, rows)
        bins = _bins(rows).flatten()
        count += torch.bincount(bins, minlength=_BINS)
        mass += torch.bincount(bins, rows.flatten().double(), minlength=_BINS)
    return Masses(columns, diagonals, count, mass)


def line_patterns(weights: HeadWeights, masses: Masses, density: float) -> dict[str, Pattern]:
    """All patterns but blocks, each with ``density`` of the weights."""
    return {
        "oracle": _oracle(masses, weights.tokens, density),
        "column": _columns(masses, weights.tokens, density),
        "diagonal": _diagonals(masses, weights.tokens, density),
        "diagonal+column": _both(weights, masses, density),
    }


def block_pattern(
    weights: HeadWeights, masses: Masses, kept: Tensor, layout: TokenLayout, block_size: tuple[int, int]
) -> Pattern:
    """The blocks of a mask, bool [Nq, Nk] of one head; its recall here is that among video tokens."""
    place = token_places(layout, weights.q.device)
    query_block, key_block = place // block_size[0], place // block_size[1]

    def keep(start: int, rows: Tensor) -> Tensor:
        flags = kept[query_block[start : start + rows.shape[0]]]
        return rows * flags[:, key_block]

    total = sum(float(keep(start, rows).sum(dtype=torch.float64)) for start, rows in weights.rows())
    return Pattern(keep, total / masses.total)


def summary_pattern(
    weights: HeadWeights, masses: Masses, kept: Tensor, means: Tensor, layout: TokenLayout, block_size: tuple[int, int]
) -> Pattern:
    """What a row sees with a summary for each block that a mask leaves out, spread evenly over the block's tokens.

    Args:
        weights, masses: of the head.
        kept: bool [Nq, Nk].
        means: mean key of each block [Nk, D], float32.
        layout: of the sequence.
        block_size: tokens of a (query, key) block.
    """
    place = token_places(layout, weights.q.device)
    query_block, key_block = place // block_size[0], place // block_size[1]

    def keep(start: int, rows: Tensor) -> Tensor:
        part = slice(start, start + rows.shape[0])
        summaries = torch.exp(weights.q[part] @ means.T * weights.scale - weights.lse[part, None])  # [n, Nk]
        return torch.where(kept[query_block[part]][:, key_block], rows, summaries[:, key_block])

    total = sum(float(keep(start, rows).sum(dtype=torch.float64)) for start, rows in weights.rows())
    return Pattern(keep, total / masses.total)


def video_share(kept: Tensor, layout: TokenLayout, block_size: tuple[int, int]) -> float:
    """Share of the weights among video tokens that the blocks of a mask, bool [Nq, Nk] of one head, cover."""
    place = torch.arange(layout.video_tokens, device=kept.device) + layout.video_start
    rows, columns = (
        torch.bincount(place // size, minlength=count).double()
        for size, count in zip(block_size, kept.shape, strict=True)
    )
    return float(rows @ kept.double() @ columns) / layout.video_tokens**2


def _bins(rows: Tensor) -> Tensor:
    """Leading 16 bits of positive floats, which order as the floats do."""
    return (rows.contiguous().view(torch.int32) >> 16).long()


def _oracle(masses: Masses, length: int, density: float) -> Pattern:
    """The heaviest single weights. Sorting them all takes too long: whole bins of them are kept, and of the last that
    is needed as large a part of each weight as there is room for, as if its weights were all alike."""
    count, mass = masses.count.flip(0), masses.mass.flip(0)
    budget = density * length**2
    whole = int((count.cumsum(0) <= budget).sum())
    share = torch.zeros_like(count)
    share[:whole] = 1
    if whole < _BINS:
        share[whole] = (budget - float(count[:whole].sum())) / float(count[whole])
    recall = float((mass * share).sum()) / masses.total
    share = share.flip(0).float()
    return Pattern(lambda _start, rows: rows * share[_bins(rows)], recall)


def _columns(masses: Masses, length: int, density: float) -> Pattern:
    kept = _heaviest(masses.columns, torch.full_like(masses.columns, length), density * length**2)
    return Pattern(lambda _start, rows: rows * kept, float(masses.columns[kept].sum()) / masses.total)


def _diagonals(masses: Masses, length: int, density: float) -> Pattern:
    kept = _heaviest(masses.diagonals, _diagonal_sizes(masses.diagonals), density * length**2)
    recall = float(masses.diagonals[kept].sum()) / masses.total
    return Pattern(lambda start, rows: rows * _on_diagonals(kept, start, rows), recall)


def _both(weights: HeadWeights, masses: Masses, density: float) -> Pattern:
    """Columns with half of the budget, then diagonals by what they hold beside these columns."""
    length, half = weights.tokens, density / 2
    columns = torch.zeros_like(masses.columns, dtype=torch.bool)
    columns[masses.columns.topk(round(half * length)).indices] = True
    beside = torch.zeros_like(masses.diagonals)
    for start, rows in weights.rows():
        _add_diagonals(beside, start, rows * ~columns)
    diagonals = _heaviest(beside, _diagonal_sizes(beside), half * length**2)
    recall = float(masses.columns[columns].sum() + beside[diagonals].sum()) / masses.total
    return Pattern(lambda start, rows: rows * (columns | _on_diagonals(diagonals, start, rows)), recall)


def _heaviest(mass: Tensor, size: Tensor, budget: float) -> Tensor:
    """Flags of the parts that carry most per weight and together have at most ``budget`` weights."""
    order = (mass / size).argsort(descending=True)
    kept = torch.zeros_like(mass, dtype=torch.bool)
    kept[order] = size[order].cumsum(0) <= budget
    return kept


def _diagonal_sizes(diagonals: Tensor) -> Tensor:
    """Number of weights on each of the 2L - 1 diagonals."""
    place = torch.arange(1, len(diagonals) + 1, dtype=torch.float64, device=diagonals.device)
    return torch.minimum(place, len(diagonals) + 1 - place)


def _add_diagonals(diagonals: Tensor, start: int, rows: Tensor) -> None:
    """Add rows [n, L] from row ``start`` on to the sums of the diagonals [2L - 1]."""
    count, length = rows.shape
    # Rows of L + n entries read as rows of L + n - 1 shift by one more each row: upside down, diagonals become columns.
    padded = torch.nn.functional.pad(rows.flip(0), (0, count)).flatten()
    sums = padded[: count * (length + count - 1)].view(count, length + count - 1).sum(0, dtype=torch.float64)
    first = length - start - count
    diagonals[first : first + len(sums)] += sums


def _on_diagonals(kept: Tensor, start: int, rows: Tensor) -> Tensor:
    """Flags [n, L] of what is on the kept diagonals, bool [2L - 1]."""
    count, length = rows.shape
    return kept.unfold(0, length, 1)[length - start - count : length - start].flip(0)

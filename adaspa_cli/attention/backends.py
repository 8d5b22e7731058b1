"""Which implementation runs an operator on which device: one table and one rule, without silent fall-backs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from adaspa_cli.attention import reference
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.config.devices import wrong_backend
from adaspa_cli.config.names import BACKENDS
from adaspa_cli.errors import BackendError, nearest

BlockSize = tuple[int, int]


class SparseOperator(Protocol):
    """q, k, v [B, H, L, D] and a mask to output [B, H, Lq, D] and LSE [B, H, Lq]."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float) -> tuple[Tensor, Tensor]: ...


class PooledOperator(Protocol):
    """The sparse operator over kept blocks and summaries of the other ``video`` key blocks, in one softmax.

    Output, LSE of both, and LSE of only the kept blocks.
    """

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, video: range, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class AffineOperator(Protocol):
    """x + ((x - mean) * factor) @ weight + intercept in the ``video`` rows [B, H, L, D] that leave key blocks out.

    Float32 means, factors, intercepts [B, H, 1, D] and weights [B, H, D, D].
    """

    def __call__(
        self, x: Tensor, mean: Tensor, factor: Tensor, weight: Tensor, intercept: Tensor, mask: BlockMask, video: range
    ) -> Tensor: ...


class DenseOperator(Protocol):
    """q, k, v [B, H, L, D] to output [B, H, Lq, D] and LSE [B, H, Lq]."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]: ...


class SumsOperator(Protocol):
    """q, k [B, H, L, D] and LSE [B, H, Lq] to block sums W [B, H, Nq, Nk], of every ``row_stride``-th query row."""

    def __call__(
        self, q: Tensor, k: Tensor, lse: Tensor, block_size: BlockSize, scale: float, row_stride: int = 1
    ) -> Tensor: ...


class SearchOperator(Protocol):
    """q, k, v [B, H, L, D] to output, LSE and block sums: the fused online search."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, block_size: BlockSize, scale: float, row_stride: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True)
class Backend:
    """One family of operators, and what it can take."""

    name: str
    sparse: SparseOperator
    sums: SumsOperator
    dense: DenseOperator
    search: SearchOperator
    head_dims: tuple[int, ...] | None = None  # None: any
    block_sizes: tuple[BlockSize, ...] | None = None  # None: any
    dtypes: tuple[torch.dtype, ...] | None = None  # None: any
    pooled: PooledOperator | None = None  # None: a pass of its own over the summaries, merged with the sparse one
    affine: AffineOperator | None = None  # None: in PyTorch
    describe_dense: Callable[[Tensor, Tensor], dict[str, Any] | None] = lambda _q, _k: None  # the kernel, if chosen


def _two_passes(dense: DenseOperator, sums: SumsOperator) -> SearchOperator:
    """Compose the fused search from a dense pass and a pass of block sums (AdaSpa, fused online search)."""

    def search(
        q: Tensor, k: Tensor, v: Tensor, block_size: BlockSize, scale: float, row_stride: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, lse = dense(q, k, v, scale)
        return out, lse, sums(q, k, lse, block_size, scale, row_stride)

    return search


def _reference() -> Backend:
    def dense(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        blocks = BlockMask.full(q.shape[1], 1, 1, (q.shape[2], k.shape[2]), q.device)
        return reference.block_sparse_attention(q, k, v, blocks, scale)

    sums: SumsOperator = reference.block_sums
    return Backend("reference", reference.block_sparse_attention, sums, dense, _two_passes(dense, sums))


def _cpu() -> Backend:
    from adaspa_cli.attention import cpu

    return Backend(
        "cpu", cpu.block_sparse_attention, cpu.block_sums, cpu.dense_attention, cpu.attention_with_block_sums
    )


def _triton() -> Backend:
    import adaspa_kernels
    from adaspa_cli.attention import dense

    def sparse(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = adaspa_kernels.block_sparse_attention(
            q, k, v, mask.counts, mask.indices,
            key_blocks=mask.key_blocks, block_size=mask.block_size, scale=scale,
        )  # fmt: skip
        return out, lse

    def pooled(
        q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, video: range, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        lists, size = (mask.counts, mask.indices), mask.block_size
        summaries = adaspa_kernels.summarise(k, v, *lists, block_size=size, video=video)
        out, lse, kept_lse = adaspa_kernels.block_sparse_attention(
            q, k, v, *lists, key_blocks=mask.key_blocks, block_size=size, scale=scale, summaries=summaries
        )
        return out, lse, kept_lse

    def affine(
        x: Tensor, mean: Tensor, factor: Tensor, weight: Tensor, intercept: Tensor, mask: BlockMask, video: range
    ) -> Tensor:
        sizes = {"key_blocks": mask.key_blocks, "block": mask.block_size[0]}
        return adaspa_kernels.add_affine(x, mean, factor, weight, intercept, mask.counts, video=video, **sizes)

    def sums(q: Tensor, k: Tensor, lse: Tensor, block_size: BlockSize, scale: float, row_stride: int = 1) -> Tensor:
        return adaspa_kernels.block_sums(q, k, lse, block_size=block_size, scale=scale, row_stride=row_stride)

    return Backend(
        "triton",
        sparse,
        sums,
        dense.dense_attention,
        _two_passes(dense.dense_attention, sums),
        head_dims=adaspa_kernels.HEAD_DIMS,
        block_sizes=adaspa_kernels.BLOCK_SIZES,
        dtypes=adaspa_kernels.HALF_DTYPES,
        pooled=pooled,
        affine=affine,
        describe_dense=dense.describe,
    )


_BACKENDS: dict[str, Callable[[], Backend]] = {"triton": _triton, "cpu": _cpu, "reference": _reference}


def resolve(name: str, device: torch.device) -> Backend:
    """Return the backend that runs on ``device``; ``auto`` is Triton on a GPU and the CPU version elsewhere.

    Raises:
        BackendError: the name is unknown, or that backend cannot run on this device.
    """
    if name not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise BackendError(f"unknown attention backend '{name}'{nearest(name, BACKENDS)}", hint=f"one of {known}")
    if name == "auto":
        name = "triton" if device.type == "cuda" else "cpu"
    if name == "triton":
        import adaspa_kernels

        reason = adaspa_kernels.unavailable(device)
        if reason:
            raise wrong_backend(name, str(device), reason)
    if name == "cpu" and device.type != "cpu":
        raise wrong_backend(name, str(device))
    return _BACKENDS[name]()

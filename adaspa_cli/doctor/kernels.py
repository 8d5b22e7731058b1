"""Which kernels an attention backend runs on a device, and whether they compute what the reference does.

Shapes: [1, H, L, D], H heads of L tokens.
"""

from __future__ import annotations

import torch

from adaspa_cli.attention import Backend, BlockMask, block_sparse_attention, resolve
from adaspa_cli.attention.cpu import uses_products
from adaspa_cli.attention.dense import OUTPUT_ERROR, choose
from adaspa_cli.config.names import BACKENDS as NAMES
from adaspa_cli.doctor.facts import Kernels
from adaspa_cli.errors import BackendError, shortened

BACKENDS = tuple(name for name in NAMES if name != "auto")
HEAD_DIMS = (64, 128)  # that models have
_HEADS, _TOKENS, _BLOCK = 2, 256, 64  # of the small problem
_DENSE_TOKENS = 8192  # of the one that the dense kernels race on


def look_at_backend(name: str, device: torch.device, dtype: torch.dtype) -> Kernels:
    """What runs, after a small problem in ``dtype`` for each head dimension that models have."""
    try:
        backend = resolve(name, device)
    except BackendError as error:
        return Kernels(name, problem=error.message, unusable=_is_not_for(name, device))
    try:
        worst = max(_error(name, device, dtype, head_dim) for head_dim in HEAD_DIMS)
        runs = _described(backend, device, dtype)
    except Exception as error:  # a compiler that is not there, a GPU that a library does not know: anything
        return Kernels(name, problem=shortened(f"{type(error).__name__}: {' '.join(str(error).split())}", 300))
    if not worst <= OUTPUT_ERROR:
        return Kernels(name, runs, problem=f"wrong results: {worst:.1%} away from the reference")
    return Kernels(name, runs)


def _is_not_for(name: str, device: torch.device) -> bool:
    """Whether a backend is for other kinds of devices, so that nothing is wrong."""
    return (name == "triton") == (device.type == "cpu")


def _error(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> float:
    """How far sparse attention on half of the blocks is from the reference in float32, relative to the norm."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, _HEADS, _TOKENS, head_dim)
    q, k, v = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3))
    blocks = _TOKENS // _BLOCK
    rows, columns = (torch.arange(blocks, device=device).view(shape) for shape in ((-1, 1), (1, -1)))
    kept = ((rows + columns) % 2 == 0).expand(_HEADS, blocks, blocks)
    mask = BlockMask.from_bool(kept, (_BLOCK, _BLOCK))
    out = block_sparse_attention(q, k, v, mask, backend=name)
    truth = block_sparse_attention(q.float(), k.float(), v.float(), mask, backend="reference")
    assert isinstance(out, torch.Tensor)
    assert isinstance(truth, torch.Tensor)
    return float((out.float() - truth).norm() / truth.norm())


def _described(backend: Backend, device: torch.device, dtype: torch.dtype) -> str:
    if backend.name == "reference":
        return "PyTorch, slow: to check results"
    if backend.name == "cpu":
        return f"PyTorch, {'matrix products in bfloat16' if uses_products(dtype) else 'its fused kernel'}"
    sparse = _paths(device, dtype)
    if device.type == "cpu":
        return f"{sparse}, in Triton's interpreter: slow, to check results"
    with torch.cuda.device(device):
        dense = [choose(device, dtype, head_dim, _DENSE_TOKENS) for head_dim in HEAD_DIMS]
    chosen = " and ".join(f"{one.kernel} at {one.probe[3]}" for one in dense)
    failed = dict(problem for one in dense for problem in one.problems.items())
    without = "".join(f", not {kernel} ({reason})" for kernel, reason in failed.items())
    return f"{sparse}; dense attention by the fastest: {chosen} values a head{without}"


def _paths(device: torch.device, dtype: torch.dtype) -> str:
    """Which form each kernel takes for blocks of 64 and 128."""
    from adaspa_kernels import BLOCK_SIZES
    from adaspa_kernels.launch import HOPPER_BLOCK_SIZES, choose_path

    tensors = [torch.empty(1, 1, 128, 128, device=device, dtype=dtype) for _ in range(3)]
    texts = []
    for kernel in HOPPER_BLOCK_SIZES:
        chosen: dict[str, list[str]] = {}
        for size in BLOCK_SIZES:
            chosen.setdefault(choose_path("auto", kernel, size, *tensors), []).append(str(size[0]))
        name = kernel.replace("_", " ")
        texts.append(f"{name}: " + ", ".join(f"{path} (blocks of {' and '.join(of)})" for path, of in chosen.items()))
    return "; ".join(texts)

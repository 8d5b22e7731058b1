"""What the launchers share: where the kernels run, what they accept, and how tiles reach shared memory.

Shapes: B batch, H heads, L tokens, D head dimension.
"""

from __future__ import annotations

import functools
import importlib
import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from triton.tools.tensor_descriptor import TensorDescriptor

HEAD_DIMS = (64, 128)
BLOCK_SIZES = ((64, 64), (128, 128))
ROW_STRIDES = (1, 2, 4, 8, 16)  # of the query rows that block sums read
WARPS, STAGES = (4, 8), (1, 2, 3)  # of the portable kernels
TUNED_TOKENS = 4096

PATHS = ("auto", "portable", "hopper")
PREFERRED_PATH = "hopper"  # what "auto" tries first
HOPPER_BLOCK_SIZES = {"block_sparse_attention": BLOCK_SIZES, "block_sums": ((64, 64),)}

MAX_SELECTED_BLOCKS = 32_768  # key blocks of a row that selection.py can hold: 16 warps of 64 keys a thread

_logger = logging.getLogger(__name__)

_TMA_ALIGNMENT = 16  # bytes: of the base address and of every stride but the last
HALF_DTYPES = (torch.bfloat16, torch.float16)


def unavailable(device: torch.device) -> str | None:
    """Return why the kernels cannot run on ``device``, or None if they can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cpu":
        return None if _interpreted() else "on a CPU its kernels run only with TRITON_INTERPRET=1 set before the start"
    if device.type != "cuda":
        return f"there are no kernels for device type '{device.type}'"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"compute capability 8.0 or newer is needed, this GPU has {major}.{minor}"
    return None


def _interpreted() -> bool:
    """Is the interpreter on, and was it when Triton decorated the kernels, which is when it decides?"""
    from triton import knobs
    from triton.runtime.jit import JITFunction

    from adaspa_kernels.common import load_rows

    return bool(knobs.runtime.interpret) and not isinstance(load_rows, JITFunction)


def choose_path(path: str, kernel: str, block_size: tuple[int, int], *tensors: Tensor) -> str:
    """Return "portable" or "hopper". ``auto`` takes what it prefers, and says so in the log where that cannot run.

    Raises:
        ValueError: the path is unknown, or was requested by name and cannot run.
    """
    if path not in PATHS:
        raise ValueError(f"path must be one of {PATHS}, got '{path}'")
    wanted = PREFERRED_PATH if path == "auto" else path
    if wanted == "portable":
        return wanted
    reason = hopper_unavailable(kernel, block_size, *tensors)
    if reason is None:
        return wanted
    if path == "hopper":
        raise ValueError(f"the Hopper kernel of {kernel} cannot run: {reason}; use path='portable'")
    _say_fallback(kernel, reason)
    return "portable"


@functools.cache
def _say_fallback(kernel: str, reason: str) -> None:
    """Log it once: a model calls a kernel thousands of times."""
    _logger.warning("%s runs the portable Triton kernel, because the Hopper one cannot: %s", kernel, reason)


def hopper_unavailable(kernel: str, block_size: tuple[int, int], *tensors: Tensor) -> str | None:
    """Return why the Hopper form of ``kernel`` cannot take these [B, H, L, D] views, or None if they can."""
    device = tensors[0].device
    if device.type != "cuda":
        return f"it needs a GPU of compute capability 9.0, got device '{device}'"
    capability = torch.cuda.get_device_capability(device)
    if capability != (9, 0):
        return f"it needs a GPU of compute capability 9.0, this one has {capability[0]}.{capability[1]}"
    if block_size not in HOPPER_BLOCK_SIZES[kernel]:
        return f"it has blocks of {HOPPER_BLOCK_SIZES[kernel]}, not {block_size}"
    if not uses_tma(*tensors):
        return "the copy engine wants a base and strides that are multiples of 16 bytes"
    return gluon_unavailable()


@functools.cache
def gluon_unavailable() -> str | None:
    """Return why this Triton cannot compile the Hopper kernels (Gluon is experimental: names change), or None."""
    try:
        importlib.import_module("adaspa_kernels.hopper_block_sparse")
        importlib.import_module("adaspa_kernels.hopper_block_sums")
    except (ImportError, AttributeError, TypeError) as error:
        return f"this Triton's Gluon lacks what they use ({error})"
    return None


def selection_unavailable(block_sums: Tensor) -> str | None:
    """Return why the kernels that select blocks cannot take W [.., Nq, Nk], or None if they can."""
    if reason := unavailable(block_sums.device):
        return reason
    if block_sums.dtype != torch.float32 or block_sums.stride(-1) != 1:
        return f"they take float32 with a last stride of 1, not {block_sums.dtype} with strides {block_sums.stride()}"
    if block_sums.shape[-1] > MAX_SELECTED_BLOCKS:
        return f"they take rows of at most {MAX_SELECTED_BLOCKS} key blocks, not {block_sums.shape[-1]}"
    return None


def check_device(device: torch.device) -> None:
    """Raise ValueError where the kernels cannot run."""
    reason = unavailable(device)
    if reason:
        raise ValueError(f"the kernels cannot run on {device}: {reason}")


def check_tensors(block_size: tuple[int, int], scale: float, **tensors: Tensor) -> None:
    """Raise ValueError unless all of q, k and v [B, H, L, D] of a call can be given to the kernels.

    They must agree in B, H, D, dtype and device; L may differ. Any strides but the last, which is 1.
    """
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size must be one of {BLOCK_SIZES}, got {block_size}")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    first, q = next(iter(tensors.items()))
    dtypes = (*HALF_DTYPES, torch.float32) if q.device.type == "cpu" else HALF_DTYPES
    for name, x in tensors.items():
        if x.dim() != 4 or x.shape[3] not in HEAD_DIMS:
            raise ValueError(f"{name} must be [B, H, L, D] with D one of {HEAD_DIMS}, got {tuple(x.shape)}")
        if x.shape[:2] != q.shape[:2] or x.shape[3] != q.shape[3]:
            raise ValueError(f"{first} and {name} must agree in B, H, D: {tuple(q.shape)} and {tuple(x.shape)}")
        if x.numel() == 0:
            raise ValueError(f"{name} must not be empty, got {tuple(x.shape)}")
        if x.dtype != q.dtype or x.dtype not in dtypes:
            raise ValueError(f"{first} and {name} must have one dtype of {dtypes}, got {q.dtype} and {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"{first} and {name} must be on one device, got {q.device} and {x.device}")
        if x.stride(3) != 1:
            raise ValueError(f"the last stride of {name} must be 1, got strides {x.stride()}")


def check_lists(counts: Tensor, indices: Tensor, device: torch.device) -> None:
    """Raise ValueError unless a mask's counts [..] are int32 and its indices [.., K] int16 or int32, on ``device``."""
    if counts.dtype != torch.int32 or indices.dtype not in (torch.int16, torch.int32):
        raise ValueError(f"counts must be int32 and indices int16 or int32, got {counts.dtype} and {indices.dtype}")
    if counts.device != device or indices.device != device:
        raise ValueError(f"counts and indices must be on {device}, got {counts.device} and {indices.device}")
    if indices.shape[:-1] != counts.shape:
        raise ValueError(
            f"counts [..] and indices [.., K] disagree in shape: {tuple(counts.shape)} and {tuple(indices.shape)}"
        )


def uses_tma(*tensors: Tensor) -> bool:
    """Can Hopper's bulk copy engine (TMA) read these [B, H, L, D] views? Otherwise pointer loads do.

    It wants compute capability 9.0, a 16-byte aligned base and positive strides of whole 16 bytes. The interpreter
    follows the rule for the layout alone, so that both paths run there.
    """
    device = tensors[0].device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (9, 0):
        return False
    return all(
        x.data_ptr() % _TMA_ALIGNMENT == 0
        and all(s > 0 and s * x.element_size() % _TMA_ALIGNMENT == 0 for s in x.stride()[:-1])
        for x in tensors
    )


def tile_source(x: Tensor, rows: int, tma: bool) -> Tensor | TensorDescriptor:
    """Return what a kernel reads ``x`` [B, H, L, D] from: a descriptor of [1, 1, rows, D] boxes, or the tensor."""
    if not tma:
        return x
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, x.shape[3]])


def run(kernel: Any, grid: tuple[int, ...], *args: Any, where: Tensor, **options: Any) -> None:
    """Launch a kernel on the device of ``where``. All launches go through here.

    Products and sums are fused, whatever Triton's default is (3.10 turns it off): registers were counted, speed was
    measured and errors are bounded with fused ones.
    """
    with torch.cuda.device_of(where):
        kernel[grid](*args, enable_fp_fusion=True, **options)


def tuned(kernel: Any, device: torch.device, tokens: int) -> tuple[Any, dict[str, int]]:
    """Return what to launch, and its options: on a GPU warps and stages are chosen by time.

    Not for so few tokens that a choice would say nothing of long sequences: these get what fits everywhere.
    """
    if device.type == "cpu" or tokens < TUNED_TOKENS:
        return kernel, {"num_warps": max(WARPS), "num_stages": min(STAGES)}
    return _autotuned(kernel), {}


@functools.cache
def _autotuned(kernel: Any) -> Any:
    """The kernel with a choice among ``WARPS`` and ``STAGES``, by time.

    It is made once for a block size, head dimension, dtype and kind of loads, and kept on disk: another length, or
    another process, does not choose again. Candidates that exceed the shared memory are skipped.
    """
    import triton

    configs = [triton.Config({}, num_warps=warps, num_stages=stages) for warps in WARPS for stages in STAGES]
    return triton.autotune(configs, key=["BLOCK_Q", "BLOCK_K", "D", "TMA"], cache_results=True)(kernel)

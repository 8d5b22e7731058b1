"""Dense attention with its log-sum-exp on a GPU, by the kernel that is fastest there: measured once, then kept.

Candidates are the kernels behind PyTorch's scaled_dot_product_attention, our own with every block kept, and
flash-attn-4 where it is installed. Which one wins depends on the GPU, the head dimension and the versions of all of
them, so it is not guessed. Few queries to many keys have a way of their own (``split_keys.py``).

Shapes: B batch, H heads, L tokens, D head dimension; q, k, v [B, H, L, D], output [B, H, Lq, D], LSE [B, H, Lq].
"""

import functools
import logging
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from adaspa_cli.attention import split_keys
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.layout import ceil_div

Dense = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]

PROBE_TOKENS = 32_768  # at most: the order of the kernels is settled by then
PROBE_HEADS = 4
PROBE_LAUNCHES = 5
PROBE_PAUSE = 4_000_000  # clock cycles, about 2 ms
NEAR = 0.03  # times closer than this are a tie, which the order of the candidates decides, so that runs agree
# Relative to the norm, against PyTorch's memory-efficient kernel in the same 16 bits; the LSE absolute.
OUTPUT_ERROR, LSE_ERROR = 2e-2, 1e-2

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """Which kernel runs dense attention, and why.

    Attributes:
        kernel: its name.
        probe: shape [1, H, L, D] that was measured.
        milliseconds: of each candidate at that shape.
        problems: why others could not run, or were wrong.
    """

    kernel: str
    probe: tuple[int, int, int, int]
    milliseconds: dict[str, float] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q, k, v [B, H, L, D] on one device to output [B, H, Lq, D] and natural LSE float32 [B, H, Lq]."""
    if q.device.type == "cpu":
        from adaspa_cli.attention import cpu

        return cpu.dense_attention(q, k, v, scale)
    if q.dtype not in (torch.bfloat16, torch.float16):
        return _efficient(q, k, v, scale)
    with torch.cuda.device(q.device):  # flash-attn-4 runs, and events are recorded, on the current device's stream
        choice = _choice(q, k)
        parts = split_keys.parts_of(q, k) if "adaspa" in choice.milliseconds else 1  # our kernel may be wrong here
        if parts > 1:
            return split_keys.split_attention(q, k, v, scale, parts)
        return candidates(q.shape[-1])[choice.kernel](q, k, v, scale)


def describe(q: Tensor, k: Tensor) -> dict[str, Any] | None:
    """What :func:`dense_attention` runs for such tensors, for the report; None where there is no choice."""
    if q.device.type == "cpu" or q.dtype not in (torch.bfloat16, torch.float16):
        return None
    with torch.cuda.device(q.device):
        return asdict(_choice(q, k))


def _choice(q: Tensor, k: Tensor) -> Choice:
    tokens = min(PROBE_TOKENS, 1 << (max(q.shape[2], k.shape[2]) - 1).bit_length())
    return choose(q.device, q.dtype, q.shape[-1], tokens)


@functools.cache
def choose(device: torch.device, dtype: torch.dtype, head_dim: int, tokens: int) -> Choice:
    """Measure all candidates on random tensors; once per process, device, dtype and shape.

    The device must be the current one. It waits for the GPU, which a CUDA graph that is being captured cannot.
    """
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, tokens, PROBE_HEADS, head_dim)
    q, k, v = (torch.randn(shape, generator=generator, device=device, dtype=dtype).transpose(1, 2) for _ in range(3))
    return fastest(candidates(head_dim), q, k, v, gpu_milliseconds)


def fastest(
    kernels: Mapping[str, Dense], q: Tensor, k: Tensor, v: Tensor, time: Callable[[Callable[[], object]], float]
) -> Choice:
    """The fastest of the kernels that agree with the one named ``efficient``, which is among them.

    Args:
        kernels: by name; of equally fast ones the first is taken.
        q, k, v: [1, H, L, D], to measure with.
        time: of a launch, in milliseconds.

    Raises:
        torch.OutOfMemoryError: this says nothing of a kernel.
    """
    scale = q.shape[-1] ** -0.5
    truth = kernels["efficient"](q, k, v, scale)
    milliseconds: dict[str, float] = {}
    problems: dict[str, str] = {}
    for name, attend in kernels.items():
        try:
            found = attend(q, k, v, scale)
            if not _agrees(found, truth):
                problems[name] = "wrong result"
                continue
            milliseconds[name] = time(functools.partial(attend, q, k, v, scale))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a kernel that this GPU or its own version refuses
            problems[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    limit = (1 + NEAR) * min(milliseconds.values(), default=0.0)
    kernel = next((name for name, time in milliseconds.items() if time <= limit), "efficient")
    _logger.info("dense attention by %s: %s ms, not %s", kernel, milliseconds, problems)
    batch, heads, tokens, head_dim = q.shape
    return Choice(kernel, (batch, heads, tokens, head_dim), milliseconds, problems)


@functools.cache
def candidates(head_dim: int) -> dict[str, Dense]:
    """The kernels that may run, by name; of equally fast ones the first is taken."""
    import adaspa_kernels

    found: dict[str, Dense] = {}
    # Not asked for its submodule: that would import it, and another version, or one built for another torch, may fail.
    if find_spec("flash_attn") is not None:
        found["flash-attn-4"] = _flash_attn_4
    if head_dim in adaspa_kernels.HEAD_DIMS:
        found["adaspa"] = _own
    return found | {"cudnn": _cudnn, "flash-2": _flash_2, "efficient": _efficient}


def _agrees(found: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> bool:
    out, true_out = found[0].float(), truth[0].float()
    close = (out - true_out).norm() <= OUTPUT_ERROR * true_out.norm()
    return bool(close and (found[1] - truth[1]).abs().max() <= LSE_ERROR)


def gpu_milliseconds(launch: Callable[[], object]) -> float:
    """Median of single launches, queued behind a pause, so that what a launch costs the CPU is not counted."""
    times = []
    for _ in range(PROBE_LAUNCHES):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda._sleep(PROBE_PAUSE)  # type: ignore[no-untyped-call]
        begin.record()
        launch()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)))
    return statistics.median(times)


def _cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention
    out, lse = attend(q, k, v, None, compute_log_sumexp=True, scale=scale)[:2]
    return out, lse.reshape(q.shape[:3])


def _flash_2(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[:2]
    return out, lse


def _efficient(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    out, lse = attend(q, k, v, None, compute_log_sumexp=True, scale=scale)[:2]
    return out, lse[..., : q.shape[2]]


def _own(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The block-sparse kernel with every block kept, in blocks of 128."""
    import adaspa_kernels

    rows, columns = (ceil_div(x.shape[2], 128) for x in (q, k))
    mask = BlockMask.full(q.shape[1], rows, columns, (128, 128), q.device)
    out, lse = adaspa_kernels.block_sparse_attention(
        q, k, v, mask.counts, mask.indices, key_blocks=columns, block_size=mask.block_size, scale=scale
    )
    return out, lse


def _flash_attn_4(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    from flash_attn.cute import flash_attn_func

    out, lse = flash_attn_func(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), softmax_scale=scale, return_lse=True
    )[:2]
    return out.transpose(1, 2), lse

"""A linear layer in FP8: weights and input as e4m3 numbers, each row with its own scale.

Weights are quantised once, by output channel; inputs in each call, by token. The product is accumulated in float32,
scaled by both, and rounded once. On a GPU our kernel quantises and ``torch._scaled_mm`` multiplies. The *emulation*
rounds the same values with PyTorch on any device and multiplies them in float32: for tests, and to judge the picture
where there is no such GPU. It is as slow as that sounds.

Shapes: M tokens of all rows of the batch, K input channels, N output channels.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaspa_cli.errors import BackendError, RunError

FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
SMALLEST = 1e-12  # of a row's maximum: rows of zeros have a scale too
ALIGNMENT = 16  # torch._scaled_mm wants K and N to be multiples of it
# A product is padded to so many rows: for few rows of many channels cuBLAS may have no row-wise kernel (HunyuanVideo's
# 64 text tokens on an H200 with torch 2.11; up to 256 rows of 9,216 channels in pytorch/ao issue 4582).
FEWEST_ROWS = 512

Quantised = tuple[Tensor, Tensor]
"""e4m3 [M, K], and the scales float32 [M, 1] that it is to be multiplied by."""


def check_fp8(device: torch.device) -> None:
    """Raise BackendError where FP8 products cannot run."""
    import adaspa_kernels

    what = str(device)
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) >= (8, 9):
            if reason := adaspa_kernels.unavailable(device):
                raise BackendError(f"linear 'fp8' cannot run: {reason}", hint="use --linear model")
            return
        what = f"{torch.cuda.get_device_name(device)}, of {major}.{minor}"
    raise BackendError(
        f"linear 'fp8' needs a GPU of compute capability 8.9 or newer, and the run is on {what}",
        hint="use --linear model",
    )


def quantise_by_torch(x: Tensor, gelu_from: int | None = None) -> Quantised:
    """What the kernel computes, readably: x [M, K] and, from a column on, the GELU of x; see ``quantise_rows``."""
    y = x.float()
    if gelu_from is not None:
        y = torch.cat([y[:, :gelu_from], F.gelu(y[:, gelu_from:], approximate="tanh")], 1)
    largest = y.abs().amax(1, keepdim=True).clamp(min=SMALLEST)
    whole = torch.full_like(largest, LARGEST)  # divided by a number, PyTorch may multiply by its reciprocal
    return (y * (whole / largest)).clamp(-LARGEST, LARGEST).to(FP8), largest / whole


def _quantise(x: Tensor, gelu_from: int | None) -> Quantised:
    if x.device.type != "cuda":
        return quantise_by_torch(x, gelu_from)
    import adaspa_kernels

    return adaspa_kernels.quantise_rows(x if x.stride(-1) == 1 else x.contiguous(), gelu_from=gelu_from)


@torch.library.custom_op("adaspa::quantise_rows", mutates_args=())
def quantise_operator(x: Tensor, gelu_from: int | None) -> tuple[Tensor, Tensor]:
    """The quantiser as ``torch.compile`` sees it: one opaque node."""
    return _quantise(x, gelu_from)


@quantise_operator.register_fake
def _(x: Tensor, gelu_from: int | None) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return x.new_empty(x.shape, dtype=FP8), x.new_empty(len(x), 1, dtype=torch.float32)


def quantise(x: Tensor, gelu_from: int | None = None) -> Quantised:
    """Quantise the rows of x [.., K], flattened to [M, K].

    Args:
        x: of floating point.
        gelu_from: the first column that goes through GELU before; None for none.
    """
    rows = x.reshape(-1, x.shape[-1])
    return quantise_operator(rows, gelu_from) if torch.compiler.is_compiling() else _quantise(rows, gelu_from)


class SharedInput:
    """The quantised input of layers that are called one after another with the same tensor.

    It is kept until as many layers have had it as share it, and for the very same tensor alone.
    """

    def __init__(self) -> None:
        self.layers = 0
        self._left = 0
        self._of: tuple[weakref.ref[Tensor], int | None] | None = None
        self._kept: Quantised | None = None

    def get(self, x: Tensor) -> Quantised:
        """Quantise x [.., K], or return what the layer before got."""
        version = None if x.is_inference() else x._version
        kept = self._kept
        if kept is None or self._of is None or self._of[0]() is not x or self._of[1] != version:
            kept = quantise(x)
            self._of, self._kept, self._left = (weakref.ref(x), version), kept, self.layers
        self._left -= 1
        if self._left <= 0:
            self._of = self._kept = None
        return kept


class Fp8Linear(nn.Module):
    """Stands for a linear layer, under its names: what is saved meanwhile is what the layer would have saved.

    The layer itself is no part of this one. Its bias is shared. Its weights may be in main memory, because they were
    there or were parked there; then they follow this one in dtype alone.
    """

    weight: Tensor
    scale: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        original: nn.Linear,
        *,
        emulate: bool,
        device: torch.device | None = None,
        held: torch.device | None = None,
        gelu_from: int | None = None,
        shared: SharedInput | None = None,
    ) -> None:
        """
        Args:
            original: K and N divisible by ``ALIGNMENT``.
            emulate: multiply with PyTorch in float32.
            device: that quantises. Weights that are in main memory instead stay there, and a copy is freed afterwards.
            held: where the FP8 weights are put; None leaves them on ``device``.
            gelu_from: the first channel of the input that goes through GELU before; None for none.
            shared: with the layers that are called with the same tensor.
        """
        super().__init__()
        self._stands_for = (original,)  # not a submodule: only the FP8 weights are at work, and move with the model
        self._parked = False
        self._stays = device is not None and original.weight.device != device  # in main memory, also when unparked
        self.emulate, self.gelu_from, self.shared = emulate, gelu_from, shared
        if shared is not None:
            shared.layers += 1
        with torch.no_grad():
            weight, scale = quantise(original.weight.to(device))
        self.register_buffer("weight", weight.to(held), persistent=False)  # [N, K]
        self.register_buffer("scale", scale.T.to(held), persistent=False)  # [1, N]
        self.register_parameter("bias", original.bias)

    @property
    def original(self) -> nn.Linear:
        """The layer."""
        return self._stands_for[0]

    def forward(self, x: Tensor) -> Tensor:
        """x [.., K] to [.., N], of the same dtype."""
        rows, scale = quantise(x, self.gelu_from) if self.shared is None else self.shared.get(x)
        product = _emulated if self.emulate else _scaled
        out = product(rows, scale, self.weight, self.scale, self.bias, x.dtype)
        return out.view(*x.shape[:-1], out.shape[-1])

    def park(self, room: float) -> bool:
        """Move the layer's weights to main memory, if they take at most ``room`` bytes. Their Parameter stays the same.

        The memory is pageable: so much that is page-locked is slow to get and missed elsewhere, and these weights cross
        the bus only twice.

        Returns:
            False if they don't fit.
        """
        if self._stays or not _is_elsewhere(self.original.weight):
            return True
        if self.original.weight.nbytes > room:
            return False
        self._parked = True  # before: whatever interrupts the move, unpark() mends it
        _move(self.original.weight, torch.device("cpu"))
        return True

    def unpark(self) -> None:
        """Bring parked weights to where the FP8 ones are; those that were in main memory before stay there."""
        if self._parked:
            _move(self.original.weight, self.weight.device)
            self._parked = False

    def extra_repr(self) -> str:
        return f"emulate={self.emulate}, gelu_from={self.gelu_from}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fp8Linear:
        """What ``to`` and the like do. FP8 numbers and scales move as bytes, so that a dtype is none of theirs."""

        def applied(tensor: Tensor) -> Tensor:
            ours = tensor is self.weight or tensor is self.scale
            return fn(tensor.view(torch.uint8)).view(tensor.dtype) if ours else fn(tensor)

        weight, device = self.original.weight, self.weight.device
        super()._apply(applied, recurse)  # type: ignore[no-untyped-call]
        if self._parked or self._stays:
            weight.data = weight.data.to(fn(torch.empty(0, dtype=weight.dtype, device=device)).dtype)
        else:
            weight.data = fn(weight.data)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        weight = self.original.weight
        destination[f"{prefix}weight"] = weight if keep_vars else weight.detach()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *_: Any, **__: Any) -> None:
        raise RunError(
            "weights can't be loaded while linear layers are in FP8", hint="call remove() on the handle first"
        )


def _is_elsewhere(weight: Tensor) -> bool:
    """Than in main memory."""
    return weight.device.type != "cpu"


def _move(parameter: Tensor, device: torch.device) -> None:
    """Move what a Parameter holds. An inference tensor remains one, and another does not become one."""
    with torch.inference_mode(parameter.is_inference()):
        parameter.data = parameter.data.to(device, copy=True)


def _scaled(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    count = len(x)
    if count < FEWEST_ROWS:
        x, x_scale = _with_rows_of_zeros(x), _with_rows_of_zeros(x_scale)
    product = torch._scaled_mm(
        x, weight.T, scale_a=x_scale, scale_b=weight_scale, bias=bias, out_dtype=dtype, use_fast_accum=True
    )
    return product[:count]


def _with_rows_of_zeros(rows: Tensor) -> Tensor:
    padded = rows.new_zeros(FEWEST_ROWS, rows.shape[1])
    padded[: len(rows)].copy_(rows)
    return padded


def _emulated(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    out = (x.float() @ weight.float().T) * x_scale * weight_scale
    return (out if bias is None else out + bias.float()).to(dtype)

"""What the two Hopper kernels share: sizes, descriptors of boxes, Gluon's names by version, and the steps of a ring.

Imported only where Gluon (``triton.experimental.gluon``) exists: :func:`adaspa_kernels.launch.hopper_unavailable`.

Shapes: B batch, H heads, L tokens, D head dimension.
"""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

BOX = 64  # rows, and columns: 128 bytes, the widest swizzle

BLOCK = gl.constexpr(BOX)
TILE = gl.constexpr(2 * BOX)  # keys of a step
THREADS = gl.constexpr(128)  # of a warpgroup

# Triton 3.8 renamed the copies of boxes, 3.9 the view of shared memory as tiles of another dtype, shape and layout.
load_box = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
store_box = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
seen_as = getattr(gl.shared_memory_descriptor, "reinterpret", None) or gl.shared_memory_descriptor._reinterpret


def boxes(x: Tensor) -> TensorDescriptor:
    """Describe ``x`` [B, H, L, D] as boxes of [1, 1, 64, 64]; what is past the end reads as zero."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, BOX, BOX], layout)


@gluon.jit
def next_slot(slot, phase, SLOTS: gl.constexpr):
    """Return the ring's next slot and its parity, which flips with each round."""
    slot = slot + 1
    wraps = slot == SLOTS
    return gl.where(wraps, 0, slot), gl.where(wraps, phase ^ 1, phase)

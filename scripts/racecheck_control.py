"""A kernel without races, for racecheck: what it reports here, it reports wherever mbarriers alone order two accesses.

One warp hands numbers to the others through one word of shared memory. It waits for the word to be empty, writes it,
and arrives at ``full``; they wait for ``full``, read, and arrive at ``empty``. That is the protocol by which the
copying warp of ``hopper_block_sparse`` tells its team what to do, and nothing else is in this kernel. The sum that
comes out is right only if no access overtakes another.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

NUMBERS = 64


@gluon.jit
def _tell(word, full, empty, numbers):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    phase = 1
    for number in range(numbers):
        mbarrier.wait(empty, phase)
        word.store(gl.full([1], number, gl.int32, layout))
        mbarrier.arrive(full, count=1)
        phase = phase ^ 1


@gluon.jit
def _add(word, full, empty, numbers, sum_ptr):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    phase = 0
    total = 0
    for _ in range(numbers):
        mbarrier.wait(full, phase)
        total += gl.max(word.load(layout), 0)
        mbarrier.arrive(empty, count=1)
        phase = phase ^ 1
    gl.store(sum_ptr + gl.program_id(0), total)


@gluon.jit(do_not_specialize=["numbers"])
def control_kernel(sum_ptr, numbers):
    """Grid (programs): each writes the sum of 0 to ``numbers`` - 1."""
    word = gl.allocate_shared_memory(gl.int32, [1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(full, count=1)
    mbarrier.init(empty, count=1)
    gl.warp_specialize(
        [(_add, (word, full, empty, numbers, sum_ptr)), (_tell, (word, full, empty, numbers))], [1], [32]
    )


def run() -> None:
    """Launch it on the current GPU; AssertionError if a sum is wrong."""
    sums = torch.zeros(4, dtype=torch.int32, device="cuda")
    control_kernel[(len(sums),)](sums, NUMBERS, num_warps=4)
    assert sums.tolist() == [NUMBERS * (NUMBERS - 1) // 2] * len(sums)

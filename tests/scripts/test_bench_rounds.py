"""The comparison's switch: both ways reach the launcher, and its own rule comes back, also after an error."""

import pytest

pytest.importorskip("triton.experimental.gluon", reason="this triton has no Gluon")

import torch

from adaspa_kernels import hopper_block_sparse
from scripts import bench_rounds


def test_rounds_are_switched_and_the_rule_comes_back() -> None:
    rule = hopper_block_sparse.keeps_step
    k = torch.zeros(1, 1, 64, 64)
    with bench_rounds.rounds("with"):
        assert hopper_block_sparse.keeps_step(k)

    def fail() -> None:
        with bench_rounds.rounds("without"):
            assert not hopper_block_sparse.keeps_step(k)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert hopper_block_sparse.keeps_step is rule

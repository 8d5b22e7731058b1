"""The comparison's switches: each way reaches the launcher, and its own rules come back, also after an error."""

import pytest

pytest.importorskip("triton.experimental.gluon", reason="this triton has no Gluon")

import torch

from adaspa_kernels import hopper_block_sparse
from scripts import bench_choices, bench_kernels


def test_ways_are_switched_and_the_rules_come_back() -> None:
    rules = hopper_block_sparse.keeps_step, hopper_block_sparse.keeps_reference
    k = torch.zeros(1, 1, 64, 64)
    with bench_choices.choice("with rounds"):
        assert hopper_block_sparse.keeps_step(k)
    with bench_choices.choice("running maximum"):
        assert not hopper_block_sparse.keeps_reference(torch.bfloat16)

    def fail() -> None:
        with bench_choices.choice("without rounds"):
            assert not hopper_block_sparse.keeps_step(k)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (hopper_block_sparse.keeps_step, hopper_block_sparse.keeps_reference) == rules


@pytest.mark.parametrize(("block", "density"), [(64, 0.5), (128, 1.0)])
def test_the_first_tile_scores_far_below_the_others(
    monkeypatch: pytest.MonkeyPatch, block: int, density: float
) -> None:
    monkeypatch.setattr(bench_kernels, "DEVICE", torch.device("cpu"))
    monkeypatch.setitem(bench_choices.TOKENS, 64, 768)
    x, kept = bench_choices.problem("all rows again", 64, block, density)
    first = kept.to_bool()[..., -2:]
    assert first.all()
    scores = (x.q.float() @ x.k.float().mT) * x.scale
    highest = scores.unflatten(-1, (-1, block)).amax(-1)
    assert (highest[..., :-2] - highest[..., -2:].amax(-1, keepdim=True) > 100).all()

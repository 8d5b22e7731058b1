"""Masks kept as bits: the same lists come back, and those that are not used are not kept."""

import pytest
import torch

from adaspa_cli.attention import BlockMask, TokenLayout, mask_size
from adaspa_cli.masks import Call, FoundMask
from adaspa_cli.masks.plan import MaskSource
from adaspa_cli.sampling.mask_memory import KnownMask, MaskMemory
from tests.sampling.test_compensation import plus
from tests.sampling.test_engine import Run

LAYOUT = TokenLayout(10, 8, 8, 0, "last")


def known(density: float) -> KnownMask:
    kept = torch.rand(2, 40, 40, generator=torch.Generator().manual_seed(0)) < density
    kept[0, 3] = True
    mask = BlockMask.from_bool(kept, (16, 16), width=40)
    return KnownMask(LAYOUT, 0, MaskSource.SEARCH, FoundMask(mask, torch.ones(2)), mask.density())


def test_the_lists_come_back() -> None:
    memory, entry = MaskMemory(), known(0.5)
    before = entry.found.mask
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_size, "LEAST_PACKED", 0)
        memory.keep(Call(0, 0, "cond", 0, LAYOUT), entry)
    assert entry.bits is not None
    assert entry.found.mask.indices.numel() == 0
    after = entry.in_use().mask
    assert torch.equal(after.to_bool(), before.to_bool())
    assert after.indices.shape == before.indices.shape
    assert torch.equal(next(iter(memory.masks().values())).mask.to_bool(), before.to_bool())


def test_small_masks_and_short_lists_are_kept_as_they_are() -> None:
    entry = known(0.5)
    entry.pack()
    assert entry.bits is None
    assert entry.in_use() is entry.found


@pytest.mark.parametrize("shared", [False, True])
def test_a_run_is_the_same(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []
    for least in (1 << 40, 0):
        monkeypatch.setattr(mask_size, "LEAST_PACKED", least)
        monkeypatch.setattr(mask_size, "PACKED_TIMES", 0)
        run = Run(plus(0, 2, fresh_lse=False), share_cfg_masks=shared)
        outputs.append(run.steps(4))
        if least == 0:
            assert all(entry.bits is not None for entry in run.engine.memory.entries())
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))

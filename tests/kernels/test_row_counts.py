"""Rows counted above thresholds, and the mass of their lists, against the same in PyTorch."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import adaspa_kernels
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.masks.recall import mask_recall

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("key_blocks", [1, 31, 64, 129])
def test_video_blocks_above_each_threshold_are_counted(device: torch.device, key_blocks: int) -> None:
    random = torch.Generator().manual_seed(key_blocks)
    whole = torch.rand(3, 7, key_blocks + 2, generator=random)
    whole[0, 2, 0], whole[1, 3, 0], whole[2, 2, 0] = torch.nan, torch.inf, 0.0
    scores = whole[:, :, :key_blocks].to(device)  # a view
    rows, columns = range(2, 6), range(key_blocks // 3, key_blocks - key_blocks // 5)
    keys = torch.where(scores.isnan(), torch.inf, scores).view(torch.int32)
    some = keys[0, 2, : min(key_blocks, 5)]
    thresholds = torch.cat([torch.tensor([-1, 0, 0x7F7FFFFF, 0x7F800000], dtype=torch.int32, device=device), some])
    counts = adaspa_kernels.count_above(scores, rows, columns, thresholds)
    video = keys[:, rows.start : rows.stop, columns.start : columns.stop]
    assert torch.equal(counts, (video > thresholds[:, None, None, None]).sum(-1, dtype=torch.int32))


@pytest.mark.parametrize("index_dtype", [torch.int16, torch.int32], ids=str)
def test_the_mass_of_lists_is_that_of_their_flags(device: torch.device, index_dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    sums = torch.rand(2, 5, 300, generator=random).to(device)
    flags = (torch.rand(2, 5, 300, generator=random) < 0.9).to(device)
    flags[0, 0], flags[1, 2] = True, False
    mask = BlockMask.from_bool(flags, (64, 64))
    kept, total = adaspa_kernels.listed_mass(sums, mask.counts, mask.indices.to(index_dtype))
    torch.testing.assert_close(kept, torch.where(flags, sums, 0).sum(-1))
    torch.testing.assert_close(total, sums.sum(-1))
    assert torch.equal(kept[0, 0], total[0, 0])
    assert kept[1, 2] == 0
    torch.testing.assert_close(kept.sum(-1) / total.sum(-1), mask_recall(flags, sums))


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    scores = torch.zeros(2, 4, 6, device=device)
    levels = torch.zeros(3, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="columns must be some of the 6 blocks"):
        adaspa_kernels.count_above(scores, range(4), range(7), levels)
    with pytest.raises(ValueError, match="thresholds must be contiguous int32"):
        adaspa_kernels.count_above(scores, range(4), range(6), levels.long())
    mask = BlockMask.full(2, 3, 6, (64, 64), device)
    with pytest.raises(ValueError, match="lists do not fit block sums"):
        adaspa_kernels.listed_mass(scores, mask.counts, mask.indices)
    mask = BlockMask.full(2, 4, 6, (64, 64), device)
    with pytest.raises(ValueError, match="int16 or int32"):
        adaspa_kernels.listed_mass(scores, mask.counts, mask.indices.float())

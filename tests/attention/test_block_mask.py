"""The block mask: packing is lossless, full rows are free, and what cannot be a mask is refused."""

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask
from adaspa_cli.attention.block_mask import INT16_BLOCKS, index_dtype

SIZE = (64, 64)


def random_bool(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.4


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 3, 5, 7), (1, 4, 1, 33)])
def test_a_random_mask_survives_the_round_trip(shape: tuple[int, ...]) -> None:
    dense = random_bool(*shape)
    assert torch.equal(BlockMask.from_bool(dense, SIZE).to_bool(), dense)


def test_empty_and_full_rows_survive_the_round_trip() -> None:
    dense = random_bool(2, 6, 9)
    dense[0, 1], dense[1, 4] = False, True
    dense[:, 5] = False
    mask = BlockMask.from_bool(dense, SIZE)
    assert torch.equal(mask.to_bool(), dense)
    assert mask.counts[0, 1] == 0
    assert mask.counts[1, 4] == 9


@pytest.mark.parametrize("kept", [True, False])
def test_a_mask_that_keeps_all_or_nothing_survives_the_round_trip(kept: bool) -> None:
    dense = torch.full((2, 3, 4), kept)
    assert torch.equal(BlockMask.from_bool(dense, SIZE).to_bool(), dense)


def test_full_rows_do_not_widen_the_lists() -> None:
    dense = torch.zeros(1, 4, 100, dtype=torch.bool)
    dense[0, :3, [5, 50, 99]] = True
    dense[0, 3] = True
    mask = BlockMask.from_bool(dense, SIZE)
    assert mask.indices.shape[-1] == 3
    assert mask.counts.tolist() == [[3, 3, 3, 100]]


def test_the_lists_ascend_and_the_unused_slots_are_zero() -> None:
    dense = random_bool(3, 8, 20)
    mask = BlockMask.from_bool(dense, SIZE)
    for head in range(3):
        for row in range(8):
            kept = dense[head, row].nonzero().flatten().tolist()
            unused = mask.indices.shape[-1] - len(kept)
            assert mask.indices[head, row].tolist() == kept + [0] * unused


def test_full_keeps_every_block() -> None:
    mask = BlockMask.full(2, 3, 4, (16, 32))
    assert mask.to_bool().all()
    assert mask.to_bool().shape == (2, 3, 4)
    assert mask.density().tolist() == [1.0, 1.0]
    assert mask.block_size == (16, 32)


@pytest.mark.parametrize(
    ("key_blocks", "dtype"), [(1, torch.int16), (INT16_BLOCKS - 1, torch.int16), (INT16_BLOCKS, torch.int32)]
)
def test_indices_are_as_narrow_as_the_number_of_blocks_allows(key_blocks: int, dtype: torch.dtype) -> None:
    assert index_dtype(key_blocks) == dtype
    dense = torch.zeros(1, 1, key_blocks, dtype=torch.bool)
    dense[..., -1] = True  # the largest index is the one that would overflow
    mask = BlockMask.from_bool(dense, SIZE)
    assert mask.indices.dtype == dtype
    assert torch.equal(mask.to_bool(), dense)


def test_density_is_the_share_of_kept_blocks_of_each_head() -> None:
    dense = random_bool(2, 3, 5, 7)
    density = BlockMask.from_bool(dense, SIZE).density()
    assert density.shape == (2, 3)
    # The share is one float32 division away from the exact one.
    torch.testing.assert_close(density, dense.float().mean((-1, -2)), rtol=1e-6, atol=0)


def test_sizes_are_read_off_the_tensors() -> None:
    mask = BlockMask.from_bool(random_bool(2, 3, 5, 7), SIZE)
    assert (mask.heads, mask.query_blocks, mask.key_blocks) == (3, 5, 7)
    assert mask.nbytes == mask.counts.nbytes + mask.indices.nbytes


def test_a_mask_moves_between_devices_unchanged(device: torch.device) -> None:
    dense = random_bool(2, 5, 7)
    moved = BlockMask.from_bool(dense, SIZE).to(device)
    assert moved.device.type == device.type
    assert torch.equal(moved.to_bool().cpu(), dense)


@pytest.mark.parametrize(
    ("counts", "indices", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, 1, dtype=torch.int16), "counts must be int32"),
        (torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 3, 1, dtype=torch.int32), "indices must be"),
        (torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 4, 1, dtype=torch.int16), "disagree"),
        (torch.zeros(3, dtype=torch.int32), torch.zeros(3, 1, dtype=torch.int16), "disagree"),
        (torch.zeros(1, 1, 2, 3, dtype=torch.int32), torch.zeros(1, 1, 2, 3, 1, dtype=torch.int16), "disagree"),
    ],
)
def test_tensors_that_are_no_mask_are_refused(counts: Tensor, indices: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockMask(counts, indices, 7, SIZE)

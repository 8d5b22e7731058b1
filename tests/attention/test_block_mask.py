"""The block mask: packing is lossless, full rows are free, and what cannot be a mask is refused."""

import logging
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, mask_conversion
from adaspa_cli.attention.block_mask import index_dtype
from adaspa_cli.attention.layout import INT16_BLOCKS

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


SIZES = [1, 31, 32, 33, 64, 65]


@pytest.mark.parametrize("key_blocks", SIZES)
@pytest.mark.parametrize("rows", [(2, 3), (2, 1, 3)], ids=str)
def test_bits_survive_the_round_trip(key_blocks: int, rows: tuple[int, ...]) -> None:
    dense = random_bool(*rows, key_blocks)
    dense[0, 0], dense[0, -1] = True, False
    mask = BlockMask.from_bool(dense, SIZE)
    bits = mask.to_bits()
    assert bits.shape == (*rows, -(-key_blocks // 32))
    again = BlockMask.from_bits(bits, key_blocks, SIZE)
    assert torch.equal(again.counts, mask.counts)
    assert torch.equal(again.indices, mask.indices)


def test_each_block_has_its_bit() -> None:
    dense = torch.zeros(1, 1, 70, dtype=torch.bool)
    dense[..., [0, 5, 31, 33, 69]] = True
    assert BlockMask.from_bool(dense, SIZE).to_bits().tolist() == [[[-(2**31) + 2**5 + 1, 2**1, 2**5]]]


@pytest.mark.skipif(sys.byteorder == "big", reason="the bytes of a word stand the other way round")
@pytest.mark.parametrize("key_blocks", SIZES)
def test_bits_are_those_of_numpy(key_blocks: int) -> None:
    dense = random_bool(2, 3, key_blocks)
    packed = BlockMask.from_bool(dense, SIZE).to_bits().view(torch.uint8).numpy()
    expected = np.packbits(dense.numpy(), axis=-1, bitorder="little")
    assert (packed[..., : expected.shape[-1]] == expected).all()
    assert not packed[..., expected.shape[-1] :].any()


def test_bits_past_the_last_block_are_ignored() -> None:
    bits = torch.full((1, 2, 2), -1, dtype=torch.int32)
    mask = BlockMask.from_bits(bits, 33, SIZE)
    assert (mask.counts == 33).all()
    assert mask.to_bits()[0, 0].tolist() == [-1, 1]


def test_a_given_width_pads_the_lists() -> None:
    dense = random_bool(2, 5, 12)
    dense[0, 0] = True  # its list needs no place
    for mask in (
        BlockMask.from_bool(dense, SIZE, width=20),
        BlockMask.from_bits(BlockMask.from_bool(dense, SIZE).to_bits(), 12, SIZE, width=20),
    ):
        assert mask.indices.shape == (2, 5, 20)
        assert torch.equal(mask.to_bool(), dense)


def test_a_width_that_a_row_does_not_fit_into_is_refused() -> None:
    dense = torch.zeros(1, 2, 9, dtype=torch.bool)
    dense[0, 1, :4] = True
    assert torch.equal(BlockMask.from_bool(dense, SIZE, width=4).to_bool(), dense)
    with pytest.raises(ValueError, match="keeps 4 blocks, but the width is 3"):
        BlockMask.from_bool(dense, SIZE, width=3)
    with pytest.raises(ValueError, match="width must be 1 or more"):
        BlockMask.from_bool(dense, SIZE, width=0)


def test_flags_of_another_type_or_size_are_refused() -> None:
    with pytest.raises(ValueError, match="must be bool"):
        BlockMask.from_bool(torch.zeros(1, 2, 9), SIZE)
    with pytest.raises(ValueError, match=r"must be int32 \[\*, H, Nq, 2\]"):
        BlockMask.from_bits(torch.zeros(1, 2, 3, dtype=torch.int32), 33, SIZE)
    with pytest.raises(ValueError, match="must be int32"):
        BlockMask.from_bits(torch.zeros(1, 2, 2, dtype=torch.uint8), 33, SIZE)


def test_what_a_gpu_does_without_kernels_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="adaspa_cli"):
        assert mask_conversion.allowed("a task of this test", None)
        assert not mask_conversion.allowed("a task of this test", "triton is not installed")
        assert not mask_conversion.allowed("a task of this test", "triton is not installed")
    (record,) = caplog.records
    assert "a task of this test runs in PyTorch" in record.getMessage()
    assert "triton is not installed" in record.getMessage()

"""Mask conversions by kernel against the PyTorch ones, on a GPU where there is one, otherwise in the interpreter."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, mask_conversion
from adaspa_cli.attention.block_mask import index_dtype

pytest.importorskip("triton", reason="triton is not installed")

import adaspa_kernels
from adaspa_kernels import mask_lists

SIZE = (64, 64)
KEY_BLOCKS = [1, 31, 32, 33, 64, 65, 1025]


def random_bool(key_blocks: int, device: torch.device, shape: tuple[int, ...] = (2, 3, 3)) -> Tensor:
    """Random rows, with an empty and a full one, and one of a single block, the last."""
    dense = torch.rand(*shape, key_blocks, generator=torch.Generator().manual_seed(key_blocks)) < 0.4
    rows = dense.view(-1, key_blocks)
    rows[0], rows[2], rows[-1] = True, False, False
    rows[-1, -1] = True
    return dense.to(device)


@pytest.fixture
def by_kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Say whether the kernels convert, on any device."""
    return lambda kernels: monkeypatch.setattr(mask_conversion, "kernels_convert", lambda _: kernels)


def same(one: BlockMask, other: BlockMask) -> bool:
    lists = torch.equal(one.counts, other.counts) and torch.equal(one.indices, other.indices)
    return lists and (one.key_blocks, one.indices.dtype) == (other.key_blocks, other.indices.dtype)


@pytest.mark.parametrize("key_blocks", KEY_BLOCKS)
def test_every_form_is_that_of_pytorch(
    device: torch.device, by_kernel: Callable[[bool], None], key_blocks: int
) -> None:
    dense = random_bool(key_blocks, device)
    by_kernel(False)
    expected = BlockMask.from_bool(dense, SIZE)
    bits = expected.to_bits()
    by_kernel(True)
    mask = BlockMask.from_bool(dense, SIZE)
    assert same(mask, expected)
    assert torch.equal(mask.to_bool(), dense)
    assert torch.equal(mask.to_bits(), bits)
    assert same(BlockMask.from_bits(bits, key_blocks, SIZE), expected)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 1, 3), (2, 0)], ids=str)
def test_with_and_without_a_batch_and_without_rows(
    device: torch.device, by_kernel: Callable[[bool], None], shape: tuple[int, ...]
) -> None:
    by_kernel(True)
    dense = torch.rand(*shape, 40, generator=torch.Generator().manual_seed(0)).to(device) < 0.5
    mask = BlockMask.from_bool(dense, SIZE)
    assert torch.equal(mask.to_bool(), dense)
    assert torch.equal(BlockMask.from_bits(mask.to_bits(), 40, SIZE).to_bool(), dense)


def test_a_given_width_is_used(device: torch.device, by_kernel: Callable[[bool], None]) -> None:
    dense = random_bool(50, device)
    by_kernel(False)
    expected = BlockMask.from_bool(dense, SIZE, width=60)
    assert expected.indices.shape[-1] == 60
    by_kernel(True)
    assert same(BlockMask.from_bool(dense, SIZE, width=60), expected)
    assert same(BlockMask.from_bits(expected.to_bits(), 50, SIZE, width=60), expected)


def test_bits_past_the_end_are_ignored_and_views_are_taken(
    device: torch.device, by_kernel: Callable[[bool], None]
) -> None:
    by_kernel(True)
    dense = random_bool(33, device)
    mask = BlockMask.from_bool(dense.transpose(1, 2), SIZE)
    assert torch.equal(mask.to_bool(), dense.transpose(1, 2))
    bits = mask.to_bits()
    bits[..., -1] |= -2  # all but the one bit of block 32
    assert torch.equal(BlockMask.from_bits(bits, 33, SIZE).to_bool(), dense.transpose(1, 2))


def test_the_list_of_a_full_row_is_not_read(device: torch.device, by_kernel: Callable[[bool], None]) -> None:
    by_kernel(True)
    counts = torch.tensor([[7, 2]], dtype=torch.int32, device=device)
    indices = torch.tensor([[[9, 9], [1, 6]]], dtype=torch.int16, device=device)
    mask = BlockMask(counts, indices, 7, SIZE)
    assert mask.to_bool()[0].int().tolist() == [[1] * 7, [0, 1, 0, 0, 0, 0, 1]]
    assert mask.to_bits()[0].tolist() == [[127], [66]]


def test_indices_of_more_blocks_than_int16_holds(device: torch.device) -> None:
    words = torch.zeros(1, 1024, dtype=torch.int32, device=device)
    words[0, 0], words[0, -1] = 1, -(2**31)
    counts = adaspa_kernels.count_flags(words, 32_768)
    assert counts.tolist() == [2]
    indices = adaspa_kernels.list_flags(words, counts, 32_768, 2, index_dtype(32_768))
    assert indices.tolist() == [[0, 32_767]]
    assert torch.equal(adaspa_kernels.flag_lists(counts, indices, 32_768, words=True), words)


def test_a_list_that_is_too_short_is_never_written_past(device: torch.device) -> None:
    flags = torch.ones(2, 40, dtype=torch.bool, device=device)
    flags[0, 3] = False
    counts = adaspa_kernels.count_flags(flags, 40)
    indices = adaspa_kernels.list_flags(flags, counts, 40, 2, torch.int16)
    assert indices.tolist() == [[0, 1], [0, 0]]


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    flags = torch.zeros(2, 33, dtype=torch.bool, device=device)
    counts, indices = (torch.zeros(shape, dtype=torch.int32, device=device) for shape in ((2,), (2, 4)))
    with pytest.raises(ValueError, match="flags of 32 key blocks must be contiguous"):
        adaspa_kernels.count_flags(flags, 32)
    with pytest.raises(ValueError, match="flags of 33 key blocks must be contiguous"):
        adaspa_kernels.count_flags(flags.float(), 33)
    with pytest.raises(ValueError, match="disagree"):
        adaspa_kernels.list_flags(flags, counts[:1], 33, 4, torch.int16)
    with pytest.raises(ValueError, match="int16 or int32"):
        adaspa_kernels.flag_lists(counts, indices.long(), 33, words=True)
    with pytest.raises(ValueError, match="counts and indices must be contiguous"):
        adaspa_kernels.flag_lists(counts, indices.t().contiguous().t(), 33, words=True)


@pytest.mark.gpu
def test_at_the_size_of_a_video(device: torch.device) -> None:
    """HunyuanVideo at 720p; with a width nothing waits for the GPU."""
    dense = torch.rand(24, 1861, 1861, generator=torch.Generator(device).manual_seed(0), device=device) < 0.2
    dense[:, -5:] = True
    BlockMask.from_bool(dense, SIZE, width=600)  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        mask = BlockMask.from_bool(dense, SIZE, width=600)
        bits = mask.to_bits()
        again = BlockMask.from_bits(bits, 1861, SIZE, width=600).to_bool()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, dense)
    assert torch.equal(mask_conversion.unpack_words(bits, 1861), dense)


def test_rows_of_several_chunks(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_lists, "CHUNK", 16)
    dense = random_bool(50, device, (1, 4)).view(4, 50)
    counts = adaspa_kernels.count_flags(dense, 50)
    assert torch.equal(counts, dense.sum(-1, dtype=torch.int32))
    indices = adaspa_kernels.list_flags(dense, counts, 50, int(counts.max()), torch.int16)
    assert torch.equal(adaspa_kernels.flag_lists(counts, indices, 50, words=False), dense)
    bits = adaspa_kernels.flag_lists(counts, indices, 50, words=True)
    assert torch.equal(mask_conversion.unpack_words(bits, 50), dense)

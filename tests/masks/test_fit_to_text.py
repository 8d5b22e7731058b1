"""A mask for another text: the same video blocks, and all blocks with text."""

import dataclasses

import pytest
import torch

from adaspa_cli.attention import BlockMask, TokenLayout
from adaspa_cli.errors import RunError
from adaspa_cli.masks import FoundMask, HeadOrder
from adaspa_cli.masks.methods.sparse_videogen import position_major
from adaspa_cli.masks.selection import select
from adaspa_cli.masks.text import fit_to_text, video_part, with_text

BLOCK, HEADS = 8, 3
SIZE = (BLOCK, BLOCK)
BEFORE = TokenLayout(frames=3, height=4, width=9, text_tokens=20, text_position="last")  # 13.5 blocks of video
TEXTS = (1, 4, 5, 20, 21, 60, 100)  # fewer, as many and more blocks


def text(tokens: int) -> TokenLayout:
    return dataclasses.replace(BEFORE, text_tokens=tokens)


@pytest.mark.parametrize("tokens", TEXTS)
@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.8])
def test_video_blocks_stay_and_text_is_kept(tokens: int, sparsity: float) -> None:
    blocks = BEFORE.blocks(BLOCK)
    sums = torch.rand(HEADS, blocks, blocks, generator=torch.Generator().manual_seed(0))
    found = select(sums, BEFORE, SIZE, sparsity, head_adaptive=True)
    got = fit_to_text(found, BEFORE, text(tokens))
    expected = with_text(video_part(found.mask.to_bool(), BEFORE, SIZE), text(tokens), SIZE)
    assert torch.equal(got.mask.to_bool(), expected)
    assert torch.equal(got.mask.counts, expected.sum(-1, dtype=torch.int32))
    assert got.recall is found.recall


@pytest.mark.parametrize("tokens", TEXTS)
def test_rows_of_any_length(tokens: int) -> None:
    kept = torch.rand(HEADS, 13, 13, generator=torch.Generator().manual_seed(1)) < torch.rand(HEADS, 13, 1)
    kept[0, 0] = True
    kept[1, 0] = False
    found = FoundMask(BlockMask.from_bool(with_text(kept, BEFORE, SIZE), SIZE), None)
    got = fit_to_text(found, BEFORE, text(tokens)).mask.to_bool()
    assert torch.equal(got, with_text(kept, text(tokens), SIZE))


@pytest.mark.parametrize("tokens", TEXTS)
def test_the_order_of_the_tokens_is_that_of_the_other_text(tokens: int) -> None:
    moved, mask = torch.tensor([True, False, True]), BlockMask.full(HEADS, 16, 16, SIZE)
    found = FoundMask(mask, None, HeadOrder(moved, *position_major(BEFORE, torch.device("cpu"))))
    order = fit_to_text(found, BEFORE, text(tokens)).order
    assert order is not None
    assert order.moved is moved
    for got, expected in zip(
        (order.forward, order.backward), position_major(text(tokens), torch.device("cpu")), strict=True
    ):
        assert torch.equal(got, expected)


def test_the_same_text_is_the_same_mask() -> None:
    found = FoundMask(BlockMask.full(HEADS, 16, 16, SIZE), None)
    assert fit_to_text(found, BEFORE, text(20)) is found


@pytest.mark.parametrize(
    "change", [{"text_tokens": 0}, {"height": 5}, {"text_position": "first"}], ids=lambda change: next(iter(change))
)
def test_other_video_blocks_are_refused(change: dict[str, object]) -> None:
    found = FoundMask(BlockMask.full(HEADS, 16, 16, SIZE), None)
    with pytest.raises(RunError, match="the guidance branches cannot share masks"):
        fit_to_text(found, BEFORE, dataclasses.replace(BEFORE, **change))
    first = dataclasses.replace(BEFORE, text_position="first")
    with pytest.raises(RunError, match="cannot share"):
        fit_to_text(found, first, dataclasses.replace(first, text_tokens=21))


@pytest.mark.parametrize("tokens", [12, 28])
def test_a_text_in_front_may_move_the_video_by_whole_blocks(tokens: int) -> None:
    before, now = (dataclasses.replace(BEFORE, text_tokens=n, text_position="first") for n in (20, tokens))
    kept = torch.rand(HEADS, 13, 13, generator=torch.Generator().manual_seed(2)) < 0.4
    kept = kept[:, : len(before.video_blocks(BLOCK)), : len(before.video_blocks(BLOCK))]
    moved = torch.tensor([True, False, True])
    mask = BlockMask.from_bool(with_text(kept, before, SIZE), SIZE)
    got = fit_to_text(FoundMask(mask, None, HeadOrder(moved, *position_major(before, mask.device))), before, now)
    assert torch.equal(got.mask.to_bool(), with_text(kept, now, SIZE))
    assert got.order is not None
    for order, expected in zip((got.order.forward, got.order.backward), position_major(now, mask.device), strict=True):
        assert torch.equal(order, expected)

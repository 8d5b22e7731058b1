"""A mask for another text: the same video blocks, and all blocks with text."""

import dataclasses

import pytest
import torch

from adaspa_cli.attention import BlockMask, TokenLayout
from adaspa_cli.errors import RunError
from adaspa_cli.masks import FoundMask, HeadOrder
from adaspa_cli.masks.methods.sparse_videogen import position_major
from adaspa_cli.masks.selection import select
from adaspa_cli.masks.sharing import for_text
from adaspa_cli.masks.video_part import video_part, with_text

BLOCK, HEADS = 8, 3
BEFORE = TokenLayout(frames=3, height=4, width=9, text_tokens=20, text_position="last")  # 13.5 blocks of video
TEXTS = (1, 4, 5, 20, 21, 60, 100)  # fewer, as many and more blocks


def text(tokens: int) -> TokenLayout:
    return dataclasses.replace(BEFORE, text_tokens=tokens)


@pytest.mark.parametrize("tokens", TEXTS)
@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.8])
def test_video_blocks_stay_and_text_is_kept(tokens: int, sparsity: float) -> None:
    blocks = BEFORE.blocks(BLOCK)
    sums = torch.rand(HEADS, blocks, blocks, generator=torch.Generator().manual_seed(0))
    found = select(sums, BEFORE, (BLOCK, BLOCK), sparsity, head_adaptive=True)
    got = for_text(found, BEFORE, text(tokens))
    expected = with_text(video_part(found.mask.to_bool(), BEFORE, BLOCK), text(tokens), BLOCK)
    assert torch.equal(got.mask.to_bool(), expected.to_bool())
    assert torch.equal(got.mask.counts, expected.counts)
    assert got.recall is found.recall


@pytest.mark.parametrize("tokens", TEXTS)
def test_rows_of_any_length(tokens: int) -> None:
    kept = torch.rand(HEADS, 13, 13, generator=torch.Generator().manual_seed(1)) < torch.rand(HEADS, 13, 1)
    kept[0, 0] = True
    kept[1, 0] = False
    found = FoundMask(with_text(kept, BEFORE, BLOCK), None)
    got = for_text(found, BEFORE, text(tokens)).mask.to_bool()
    assert torch.equal(got, with_text(kept, text(tokens), BLOCK).to_bool())


@pytest.mark.parametrize("tokens", TEXTS)
def test_the_order_of_the_tokens_is_that_of_the_other_text(tokens: int) -> None:
    moved, mask = torch.tensor([True, False, True]), BlockMask.full(HEADS, 16, 16, (BLOCK, BLOCK))
    found = FoundMask(mask, None, HeadOrder(moved, *position_major(BEFORE, torch.device("cpu"))))
    order = for_text(found, BEFORE, text(tokens)).order
    assert order is not None
    assert order.moved is moved
    for got, expected in zip(
        (order.forward, order.backward), position_major(text(tokens), torch.device("cpu")), strict=True
    ):
        assert torch.equal(got, expected)


def test_the_same_text_is_the_same_mask() -> None:
    found = FoundMask(BlockMask.full(HEADS, 16, 16, (BLOCK, BLOCK)), None)
    assert for_text(found, BEFORE, text(20)) is found


@pytest.mark.parametrize(
    "change", [{"text_tokens": 0}, {"height": 5}, {"text_position": "first"}], ids=lambda change: next(iter(change))
)
def test_other_video_blocks_are_refused(change: dict[str, object]) -> None:
    found = FoundMask(BlockMask.full(HEADS, 16, 16, (BLOCK, BLOCK)), None)
    with pytest.raises(RunError, match="the guidance branches cannot share masks"):
        for_text(found, BEFORE, dataclasses.replace(BEFORE, **change))
    first = dataclasses.replace(BEFORE, text_position="first")
    with pytest.raises(RunError, match="cannot share"):
        for_text(found, first, dataclasses.replace(first, text_tokens=21))

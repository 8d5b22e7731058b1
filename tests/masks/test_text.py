"""A mask without its text blocks, and with those of another prompt."""

import pytest
import torch

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.mask_conversion import unpack_words
from adaspa_cli.masks.recall import mask_recall
from adaspa_cli.masks.selection import select
from adaspa_cli.masks.text import pack_video, sums_with_text, video_part, with_text

BLOCK = 16
SIZE = (BLOCK, BLOCK)


def layout(text: int, position: str = "last") -> TokenLayout:
    return TokenLayout(5, 6, 8, text, position)  # type: ignore[arg-type]


def sums(of: TokenLayout) -> torch.Tensor:
    blocks = of.blocks(BLOCK)
    return torch.randn(3, blocks, blocks, generator=torch.Generator().manual_seed(0)).mul(2).exp()


@pytest.mark.parametrize(("searched", "used"), [(5, 5), (5, 70), (70, 5), (1, 16)])
def test_another_text_length_gets_the_same_video_blocks_and_all_of_its_text(searched: int, used: int) -> None:
    before, after = layout(searched), layout(used)
    mask = select(sums(before), before, SIZE, 0.7, head_adaptive=True).mask
    words = pack_video(mask, before)
    blocks = len(before.video_blocks(BLOCK))
    assert words.shape == (3, blocks, -(-blocks // 32))
    again = with_text(unpack_words(words, blocks), after, SIZE)
    assert again.shape == (3, after.blocks(BLOCK), after.blocks(BLOCK))
    assert torch.equal(video_part(again, after, SIZE), video_part(mask.to_bool(), before, SIZE))
    text = after.text_blocks(BLOCK)
    assert again[:, text.start : text.stop].all()
    assert again[:, :, text.start : text.stop].all()
    if searched == used:
        assert torch.equal(again, mask.to_bool())


def test_text_first_keeps_its_place() -> None:
    of = layout(21, "first")
    mask = select(sums(of), of, SIZE, 0.7, head_adaptive=False).mask
    kept = unpack_words(pack_video(mask, of), len(of.video_blocks(BLOCK)))
    assert torch.equal(with_text(kept, of, SIZE), mask.to_bool())


@pytest.mark.parametrize("of", [layout(5), layout(40), layout(0), layout(21, "first")], ids=str)
def test_sums_of_video_and_text_mass_have_the_mask_and_the_recall_of_all_sums(of: TokenLayout) -> None:
    whole = sums(of)
    video = video_part(whole, of, SIZE)
    text = whole.sum((-1, -2)) - video.sum((-1, -2))
    found = [select(each, of, SIZE, 0.7, head_adaptive=True) for each in (whole, sums_with_text(video, text, of, SIZE))]
    assert torch.equal(found[0].mask.to_bool(), found[1].mask.to_bool())
    torch.testing.assert_close(found[0].recall, found[1].recall, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mask_recall(found[0].mask.to_bool(), whole), found[0].recall, rtol=1e-5, atol=1e-6)

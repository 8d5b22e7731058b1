"""Mask selection by kernel against the PyTorch way, on a GPU where there is one, otherwise in the interpreter.

Counts and lists agree exactly, ties included. Recall is a quotient of float32 sums in different orders: 1e-5.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.masks import FoundMask, selection
from adaspa_cli.masks.selection import select

pytest.importorskip("triton", reason="triton is not installed")

import adaspa_kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")

QUERY_BLOCK, KEY_BLOCK = 256, 16  # few rows: the interpreter takes them one by one
LAYOUTS = {
    "text last": TokenLayout(8, 16, 4, 40, "last"),
    "text first": TokenLayout(8, 16, 4, 40, "first"),
    "straddling": TokenLayout(9, 13, 5, 21, "last"),
    "no text": TokenLayout(8, 16, 4, 0, "last"),
}


@contextmanager
def way(kernels: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "kernels_take", lambda _: kernels)
        yield


def both(W: Tensor, layout: TokenLayout, sparsity: float, *, head_adaptive: bool = True) -> FoundMask:
    """Select in both ways and compare; returns what the kernels found."""
    found = []
    for kernels in (False, True):
        with way(kernels):
            found.append(select(W, layout, (QUERY_BLOCK, KEY_BLOCK), sparsity, head_adaptive=head_adaptive))
    truth, mine = found
    assert torch.equal(mine.mask.counts, truth.mask.counts)
    assert torch.equal(mine.mask.indices, truth.mask.indices)
    assert mine.mask.indices.dtype == truth.mask.indices.dtype
    torch.testing.assert_close(mine.recall, truth.recall, rtol=1e-5, atol=0, equal_nan=True)
    return mine


def block_sums(layout: TokenLayout, device: torch.device, heads: int = 5) -> Tensor:
    """W [H, Nq, Nk], more concentrated from head to head."""
    noise = torch.randn(heads, layout.blocks(QUERY_BLOCK), layout.blocks(KEY_BLOCK), generator=random())
    return torch.softmax(noise * torch.linspace(0.2, 6, heads)[:, None, None], dim=-1).to(device)


def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("head_adaptive", [False, True])
def test_agrees_with_pytorch(device: torch.device, layout: TokenLayout, head_adaptive: bool) -> None:
    found = both(block_sums(layout, device), layout, 0.8, head_adaptive=head_adaptive)
    counts = found.mask.counts[:, layout.video_blocks(QUERY_BLOCK).start]
    assert len(set(counts.tolist())) == (3 if head_adaptive else 1)


@pytest.mark.parametrize(
    ("sparsity", "kept"), [(0.999, 1), (0.001, 32), (0.97, 1), (0.5, 16)], ids=["one", "all", "one, too", "half"]
)
def test_from_one_block_to_all(device: torch.device, sparsity: float, kept: int) -> None:
    layout = LAYOUTS["text last"]
    W = block_sums(layout, device, heads=1)
    counts = both(W, layout, sparsity).mask.counts
    assert counts[0, 0] == kept + len(layout.text_blocks(KEY_BLOCK))
    assert counts[0, -1] == W.shape[-1]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_of_equal_blocks_the_first_are_kept(device: torch.device, layout: TokenLayout) -> None:
    W = torch.full((2, layout.blocks(QUERY_BLOCK), layout.blocks(KEY_BLOCK)), 0.25, device=device)
    mask = both(W, layout, 0.75, head_adaptive=False).mask
    video, text = layout.video_blocks(KEY_BLOCK), layout.text_blocks(KEY_BLOCK)
    row = layout.video_blocks(QUERY_BLOCK).start
    assert mask.indices[1, row].tolist() == sorted([*video[: round(0.25 * len(video))], *text])


def test_many_ties(device: torch.device) -> None:
    """Few different weights, zero among them: every threshold is a tie."""
    layout = LAYOUTS["text first"]
    W = torch.randint(0, 4, block_sums(layout, device).shape, generator=random()).to(device) / 8
    for sparsity in (0.3, 0.6, 0.9):
        both(W, layout, sparsity)


def test_zeros(device: torch.device) -> None:
    """A head without any mass, and one where only some video blocks have some."""
    layout = LAYOUTS["text last"]
    W = torch.zeros_like(block_sums(layout, device, heads=2))
    W[1, :, 3] = 1.0
    found = both(W, layout, 0.8)
    assert found.recall[1] == 1.0
    assert found.recall[0].isnan()


@pytest.mark.parametrize("smallest", [2.0**-149, 2.0**-126])
def test_the_smallest_weights_have_an_order_too(device: torch.device, smallest: float) -> None:
    layout = LAYOUTS["no text"]
    order = torch.randperm(32, generator=random())
    heaviest = (order >= 24).nonzero().flatten().tolist()
    W = (order * smallest).expand(1, 2, 32).contiguous().to(device)
    assert both(W, layout, 0.75, head_adaptive=False).mask.indices[0, 0].tolist() == heaviest


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf])
def test_what_is_no_number_counts_as_the_heaviest_and_ends(device: torch.device, value: float) -> None:
    layout = LAYOUTS["text last"]
    W = block_sums(layout, device, heads=3)
    W[0, 0, 5], W[0, 1, 20:24], W[1] = value, value, value
    found = both(W, layout, 0.9)
    assert 5 in found.mask.indices[0, 0].tolist()


def test_heads_trade_blocks_by_their_recall(device: torch.device) -> None:
    """Planted recalls: one high, one low, the others in between."""
    layout = LAYOUTS["text last"]
    video = layout.video_blocks(KEY_BLOCK)
    W = torch.full((5, layout.blocks(QUERY_BLOCK), layout.blocks(KEY_BLOCK)), 0.01)
    for head, share in enumerate([0.06, 0.95, 0.02, 0.05, 0.07]):
        W[head, :, video.start + 3 : video.start + 9] = share
    W += 0.001 * torch.rand(W.shape, generator=random())
    found = both(W.to(device), layout, 0.8)
    fewest, base, most = 3, 6, 10
    assert (found.mask.counts[:, 0] - len(layout.text_blocks(KEY_BLOCK))).tolist() == [
        base, fewest, most, base, base,
    ]  # fmt: skip


def test_one_sample_of_a_batch_is_not_copied(device: torch.device) -> None:
    layout = LAYOUTS["straddling"]
    W = block_sums(layout, device)
    padded = torch.full((3, *W.shape[:2], W.shape[2] + 3), torch.nan, device=device)
    padded[1, ..., :-3] = W
    view = padded[1, ..., :-3]
    assert not view.is_contiguous()
    whole, part = both(W, layout, 0.7), both(view, layout, 0.7)
    assert torch.equal(whole.mask.indices, part.mask.indices)


def test_a_batch(device: torch.device) -> None:
    layout = LAYOUTS["text first"]
    rows, columns = layout.video_blocks(QUERY_BLOCK), layout.video_blocks(KEY_BLOCK)
    W = torch.stack([block_sums(layout, device, 2), block_sums(layout, device, 2).flip(1)])
    weighed = adaspa_kernels.weigh_rows(W, rows, columns, (3, 6, 10))
    chosen = torch.tensor([[3, 6], [10, 3]], device=device)
    counts, indices = adaspa_kernels.pack_rows(W, rows, columns, weighed, chosen, torch.int16)
    for sample in range(2):
        alone = W[sample : sample + 1]
        its = adaspa_kernels.weigh_rows(alone, rows, columns, (3, 6, 10))
        expected = adaspa_kernels.pack_rows(alone, rows, columns, its, chosen[sample : sample + 1], torch.int16)
        assert torch.equal(counts[sample], expected[0][0])
        assert torch.equal(indices[sample], expected[1][0])
        assert torch.equal(weighed.kept[:, sample], its.kept[:, 0])


def test_a_search_leaves_the_block_sums_as_they_were(device: torch.device) -> None:
    layout = LAYOUTS["text last"]
    W = block_sums(layout, device)
    before = W.clone()
    both(W, layout, 0.8)
    assert torch.equal(W, before)


def test_long_rows(device: torch.device) -> None:
    """As long as they get, with ties that fill the counts of the scan; 32-bit indices."""
    most = adaspa_kernels.MAX_SELECTED_BLOCKS
    layout = TokenLayout(most, 1, KEY_BLOCK, 0, "last")
    W = torch.rand(1, 2, most, generator=random()).to(device)
    W[0, 1] = 0.5
    weighed = adaspa_kernels.weigh_rows(W[None], range(2), range(most), (most // 5,))
    chosen = torch.full((1, 1), most // 5, device=device)
    _, indices = adaspa_kernels.pack_rows(W[None], range(2), range(most), weighed, chosen, torch.int32)
    expected = torch.sort(W, dim=-1, descending=True, stable=True).indices[..., : most // 5].sort(-1).values
    assert torch.equal(indices[0].long(), expected)
    assert layout.blocks(KEY_BLOCK) == most


def test_what_the_kernels_cannot_take_is_refused(device: torch.device) -> None:
    W = torch.rand(1, 2, 4, 8, device=device)
    for wrong, message in (
        (W.double(), "float32"),
        (W.transpose(2, 3), "last stride of 1"),
        (torch.zeros(1, 1, 1, adaspa_kernels.MAX_SELECTED_BLOCKS + 1, device=device), "at most 32768 key blocks"),
        (W[0], r"must be \[B, H, Nq, Nk\]"),
    ):
        with pytest.raises(ValueError, match=message):
            adaspa_kernels.weigh_rows(wrong, range(1), range(1), (1,))
    for rows, columns, candidates, message in (
        (range(5), range(8), (2,), "rows must be some of the 4 blocks"),
        (range(4), range(3, 3), (2,), "columns must be some of the 8 blocks"),
        (range(4), range(0, 8, 2), (2,), "columns must be some of the 8 blocks"),
        (range(4), range(8), (2, 3), "1 or 3 numbers"),
        (range(4), range(8), (0,), "1 or 3 numbers"),
        (range(4), range(8), (9,), "1 or 3 numbers"),
        (range(4), range(8), (3, 2, 4), "1 or 3 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            adaspa_kernels.weigh_rows(W, rows, columns, candidates)
    weighed = adaspa_kernels.weigh_rows(W, range(4), range(8), (2,))
    with pytest.raises(ValueError, match="chosen must be contiguous integers"):
        adaspa_kernels.pack_rows(W, range(4), range(8), weighed, torch.zeros(2, device=device), torch.int16)


@pytest.mark.gpu
@pytest.mark.parametrize("position", ["first", "last"])
def test_at_the_size_of_a_video(device: torch.device, position: str) -> None:
    """HunyuanVideo at 720p; nothing waits for the GPU, and the memory is that of the lists."""
    layout = TokenLayout(33, 45, 80, 256, position)  # type: ignore[arg-type]
    generator = torch.Generator(device).manual_seed(0)
    W = (
        torch.rand(24, 1861, 1861, generator=generator, device=device)
        ** torch.arange(1, 25, device=device)[:, None, None]
    )
    with way(True):
        select(W, layout, (64, 64), 0.8, head_adaptive=True)  # compiled
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = select(W, layout, (64, 64), 0.8, head_adaptive=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.cuda.max_memory_allocated() - before < found.mask.nbytes + 10e6
    with way(False):
        truth = select(W, layout, (64, 64), 0.8, head_adaptive=True)
    assert torch.equal(found.mask.counts, truth.mask.counts)
    assert torch.equal(found.mask.indices, truth.mask.indices)
    torch.testing.assert_close(found.recall, truth.recall, rtol=1e-5, atol=0)

"""The Hilbert order: a permutation of the video tokens in which neighbours follow one another."""

import dataclasses

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.masks.token_order import hilbert_index, token_blocks, video_order
from tests.token_orders import sequence_order

SIZES = [(1, 1, 1), (1, 1, 7), (2, 2, 2), (9, 32, 32), (5, 3, 13), (33, 2, 1)]


def coordinates(layout: TokenLayout) -> Tensor:
    """(frame, row, column) of each video token in the Hilbert order, [N, 3]."""
    places = torch.cartesian_prod(*(torch.arange(n) for n in (layout.frames, layout.height, layout.width)))
    return places.view(-1, 3)[video_order(layout).forward]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_order_is_a_permutation_and_its_inverse(size: tuple[int, int, int]) -> None:
    layout = TokenLayout(*size, 0, "last")
    order = video_order(layout)
    everyone = torch.arange(layout.video_tokens)
    assert torch.equal(order.forward.sort().values, everyone)
    assert torch.equal(order.forward[order.backward], everyone)


def test_leading_frames_have_a_curve_of_their_own() -> None:
    order = video_order(TokenLayout(5, 3, 13, 0, "last", "hilbert", 1))
    lead, rest = (video_order(TokenLayout(frames, 3, 13, 0, "last")).forward for frames in (1, 4))
    assert torch.equal(order.forward, torch.cat([lead, rest + 39]))
    assert torch.equal(order.forward[order.backward], torch.arange(195))


@pytest.mark.parametrize("side", [2, 4, 8, 16])
def test_in_a_full_cube_consecutive_tokens_are_neighbours(side: int) -> None:
    steps = coordinates(TokenLayout(side, side, side, 0, "last")).diff(dim=0)
    assert torch.equal(steps.abs().sum(-1), torch.ones(side**3 - 1, dtype=torch.int64))


def test_every_aligned_piece_of_the_curve_is_a_cube() -> None:
    pieces = coordinates(TokenLayout(8, 8, 8, 0, "last")).view(-1, 64, 3)
    extent = pieces.amax(1) - pieces.amin(1)
    assert torch.equal(extent, torch.full_like(extent, 3))


def test_another_size_visits_the_places_of_the_cube_in_the_same_order() -> None:
    size, bits = (5, 3, 13), 4
    inside = [coordinate.tolist() for coordinate in coordinates(TokenLayout(*size, 0, "last"))]
    cube = coordinates(TokenLayout(16, 16, 16, 0, "last")).tolist()
    assert inside == [place for place in cube if all(x < limit for x, limit in zip(place, size, strict=True))]
    places = torch.tensor(inside).unbind(-1)
    assert bool((hilbert_index(*places, bits).diff() > 0).all())


@pytest.mark.parametrize("position", ["first", "last"])
def test_text_stays_where_it_is(position: str) -> None:
    layout = TokenLayout(3, 4, 5, 7, position)
    order = sequence_order(layout)
    tokens = torch.arange(layout.tokens)
    moved = order.apply(tokens[None], 1)[0]
    text = slice(0, 7) if position == "first" else slice(60, 67)
    assert torch.equal(moved[text], tokens[text])
    assert not torch.equal(moved, tokens)
    assert torch.equal(order.undo(moved[None], 1)[0], tokens)


@pytest.mark.parametrize("position", ["first", "last"])
def test_a_token_s_block_is_the_one_that_its_place_lies_in(position: str) -> None:
    layout = TokenLayout(3, 4, 5, 7, position, "hilbert")
    start, order = layout.video_start, sequence_order(layout)
    expected = [int((order.forward == start + token).nonzero()) // 8 for token in range(60)]
    assert token_blocks(layout, 8).tolist() == expected
    raster = dataclasses.replace(layout, order="raster")
    assert token_blocks(raster, 8).tolist() == [(start + token) // 8 for token in range(60)]


def test_orders_are_made_once_for_each_size() -> None:
    first, second = TokenLayout(3, 4, 5, 7, "last"), TokenLayout(3, 4, 5, 60, "first")
    assert video_order(first) is video_order(second)

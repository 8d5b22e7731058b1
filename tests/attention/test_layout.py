"""Where video and text stand: every block belongs to one of them, and a block with any text counts as text."""

import pytest

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.layout import ceil_div


def layout(video: int, text: int, position: str) -> TokenLayout:
    return TokenLayout(frames=video, height=1, width=1, text_tokens=text, text_position=position)  # type: ignore[arg-type]


def test_tokens_are_the_grid_and_the_text() -> None:
    grid = TokenLayout(frames=3, height=4, width=5, text_tokens=7, text_position="last")
    assert grid.video_tokens == 60
    assert grid.tokens == 67
    assert grid.blocks(16) == 5
    assert grid.video_start == 0
    assert layout(60, 7, "first").video_start == 7


@pytest.mark.parametrize(("a", "b", "expected"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2)])
def test_ceil_div_rounds_up(a: int, b: int, expected: int) -> None:
    assert ceil_div(a, b) == expected


@pytest.mark.parametrize(
    ("video", "text", "position", "video_blocks", "text_blocks"),
    [
        # exact multiples
        (64, 32, "last", range(4), range(4, 6)),
        (64, 32, "first", range(2, 6), range(2)),
        # one block straddles the border
        (70, 20, "last", range(4), range(4, 6)),
        (70, 20, "first", range(2, 6), range(2)),
        # the last block is ragged
        (70, 26, "last", range(4), range(4, 6)),
        (65, 16, "first", range(1, 6), range(1)),
        # all text inside the straddling block
        (70, 3, "last", range(4), range(4, 5)),
        (70, 3, "first", range(1, 5), range(1)),
        # no text
        (70, 0, "last", range(5), range(5, 5)),
        (70, 0, "first", range(5), range(0)),
        # fewer tokens than one block
        (5, 3, "last", range(0), range(1)),
        (5, 3, "first", range(1, 1), range(1)),
        (5, 0, "last", range(1), range(1, 1)),
    ],
)
def test_blocks_of_video_and_text(
    video: int, text: int, position: str, video_blocks: range, text_blocks: range
) -> None:
    tokens = layout(video, text, position)
    assert list(tokens.video_blocks(16)) == list(video_blocks)
    assert list(tokens.text_blocks(16)) == list(text_blocks)


@pytest.mark.parametrize("position", ["first", "last"])
@pytest.mark.parametrize("text", [0, 1, 15, 16, 17, 40])
@pytest.mark.parametrize("video", [1, 15, 16, 17, 100])
def test_a_block_is_text_exactly_where_it_holds_a_text_token(video: int, text: int, position: str) -> None:
    tokens = layout(video, text, position)
    is_text = [True] * text + [False] * video if position == "first" else [False] * video + [True] * text
    blocks = [any(is_text[start : start + 16]) for start in range(0, len(is_text), 16)]
    assert list(tokens.text_blocks(16)) == [block for block, holds in enumerate(blocks) if holds]
    assert list(tokens.video_blocks(16)) == [block for block, holds in enumerate(blocks) if not holds]

"""What to draw of a running model: layers, heads, steps and a query token. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from adaspa_cli.attention.layout import TokenLayout, check_video_block
from adaspa_cli.config.families import Grid
from adaspa_cli.errors import ConfigError

_VIEW_BYTES = 64 << 20  # of all video views of a page, before they are compressed


@dataclass(frozen=True)
class Choice:
    """What to look at.

    Attributes:
        layers, heads: of which weights are drawn; recall and LSE are recorded for all.
        steps: ascending denoising steps.
        reference: the step, one of ``steps``, whose masks are tried on the others and on other videos.
        pixels: cells along a side of a picture at most.
        query: (frame, row, column) in tokens of what the video view shows first.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    steps: tuple[int, ...]
    reference: int
    pixels: int
    query: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class ProbeRequest:
    """What to look at, as far as it was said; None leaves it to the model's size."""

    layers: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    steps: tuple[int, ...]
    reference: int
    pixels: int
    query: tuple[int, int, int] | None

    def choose(self, layers: int, heads: int) -> Choice:
        """Fill in the first, the middle and the last layer, and the first and the middle head.

        Raises:
            ConfigError: the model has no such layer or head.
        """
        choice = Choice(
            self.layers or spread(layers),
            self.heads or tuple(sorted({0, heads // 2})),
            self.steps,
            self.reference,
            self.pixels,
            self.query,
        )
        check_choice(choice, layers, heads)
        return choice


def check_transformers(number: int) -> None:
    """Refuse a model of which no layer attends at every step; raises ConfigError."""
    if number > 1:
        raise ConfigError(
            f"visualize looks at the same layers at every step, and this model has {number} transformers, each for a "
            "part of the steps",
            hint="adaspa search-masks and adaspa masks plot draw the masks of both",
        )


def check_grid(layout: TokenLayout, choice: Choice, block_size: int) -> None:
    """Refuse a query outside the token grid, a video of less than a block, and more views of it than a page can hold.

    Raises:
        ConfigError: with what is allowed.
    """
    check_query((layout.frames, layout.height, layout.width), choice.query)
    check_video_block(layout, block_size)
    views, blocks = len(choice.layers) * len(choice.heads) * len(choice.steps), layout.blocks(block_size)
    if views * blocks**2 > _VIEW_BYTES:
        raise ConfigError(
            f"{views} views of {blocks} x {blocks} blocks are too many for a page",
            hint=f"choose at most {_VIEW_BYTES // blocks**2} views: fewer --at-layers, --at-heads or --at-steps",
        )


def check_query(grid: Grid, query: tuple[int, int, int] | None) -> None:
    """Refuse a query token outside the token grid.

    Raises:
        ConfigError: with what is allowed.
    """
    if query is not None and any(at >= size for at, size in zip(query, grid, strict=True)):
        asked, last = (",".join(map(str, place)) for place in (query, (size - 1 for size in grid)))
        raise ConfigError(
            f"query {asked} is outside the video of {grid[0]} x {grid[1]} x {grid[2]} tokens",
            hint=f"frame, row and column count from 0: at most {last}",
        )


def check_choice(choice: Choice, layers: int, heads: int) -> None:
    """Refuse layers and heads that the model does not have.

    Raises:
        ConfigError: with what there is.
    """
    for name, chosen, count in (("layer", choice.layers, layers), ("head", choice.heads, heads)):
        unknown = [index for index in chosen if index >= count]
        if unknown:
            raise ConfigError(f"the model has no {name} {unknown[0]}", hint=f"its {name}s are 0 to {count - 1}")


def spread(count: int) -> tuple[int, ...]:
    """First, middle and last of ``count``."""
    return tuple(sorted({0, count // 2, count - 1}))


def middle(layout: TokenLayout) -> tuple[int, int, int]:
    """The token in the middle of the video."""
    return layout.frames // 2, layout.height // 2, layout.width // 2

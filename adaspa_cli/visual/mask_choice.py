"""What to draw of mask files, by their headers. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from adaspa_cli.attention.layout import ceil_div
from adaspa_cli.errors import ConfigError, MaskFileError
from adaspa_cli.maskfiles.description import Description
from adaspa_cli.maskfiles.header import Described
from adaspa_cli.maskfiles.pairing import check_shapes
from adaspa_cli.visual.choice import check_query, middle, spread

T = TypeVar("T")
Numbers = tuple[int, ...]


@dataclass(frozen=True)
class MaskChoice:
    """What to draw of mask files.

    Attributes:
        layers, heads: whose kept blocks are drawn; figures by layer and head are of all.
        branches: guidance branches that all files have, in the order of the first.
        steps: ascending, of the search steps that all files have.
        pixels: cells along a side of a picture at most.
        query: (frame, row, column) of the token whose kept tokens are drawn over the frames.
        by_tokens: whether cells are areas of tokens, frame by frame and row by row, instead of blocks: so where the
            tokens of a file are in another order, and its blocks in none that a person sees.
    """

    layers: Numbers
    heads: Numbers
    branches: tuple[str, ...]
    steps: Numbers
    pixels: int
    query: tuple[int, int, int]
    by_tokens: bool

    @classmethod
    def of(
        cls,
        files: Sequence[Described],
        layers: Numbers | None = None,
        heads: Numbers | None = None,
        steps: Numbers | None = None,
        pixels: int = 512,
        query: tuple[int, int, int] | None = None,
    ) -> MaskChoice:
        """Fill in the first, middle and last layer, the first and middle head, all steps that the files share, and the
        token in the middle of the video.

        Raises:
            ConfigError: a file has no such layer, head or step, or the video no such token.
            MaskFileError: the files have different shapes, or no step or branch in common.
        """
        for other in files[1:]:
            check_shapes(files[0], other)
        for file in files:
            facts = file.description
            _check_known(file, "layer", layers, range(facts.layers))
            _check_known(file, "head", heads, range(facts.heads))
            _check_known(file, "search step", steps, facts.search_steps)
        facts = files[0].description
        check_query((facts.layout.frames, facts.layout.height, facts.layout.width), query)
        layers = layers or spread(min([facts.layers, *(first for first, _ in facts.stages)]))
        of_layers = list(dict.fromkeys(file.description.steps_of(layer) for file in files for layer in layers))
        steps = steps or _shared("search step", of_layers)
        if any(step not in there for step in steps for there in of_layers):
            raise ConfigError(
                f"layers {', '.join(map(str, layers))} do not all have the search steps {', '.join(map(str, steps))}",
                hint="choose --layers and --steps of one transformer; adaspa masks info FILE lists them",
            )
        return cls(
            layers,
            heads or tuple(sorted({0, facts.heads // 2})),
            _shared("guidance branch", [file.description.branches for file in files]),
            steps,
            pixels,
            query or middle(facts.layout),
            any(file.description.layout.order != "raster" for file in files),
        )

    def cell(self, facts: Description) -> int:
        """Blocks, or tokens, along a side of a picture's cell."""
        return ceil_div(facts.layout.video_tokens if self.by_tokens else facts.video_blocks, self.pixels)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Each step with the next one."""
        return list(zip(self.steps, self.steps[1:], strict=False))


def _check_known(file: Described, name: str, chosen: Numbers | None, known: Sequence[int]) -> None:
    unknown = [number for number in chosen or () if number not in known]
    if unknown:
        there = f"0 to {known[-1]}" if isinstance(known, range) else ", ".join(map(str, known))
        raise ConfigError(f"{file.path} has no {name} {unknown[0]}; its {name}s are {there}")


def _shared(name: str, of_files: Sequence[tuple[T, ...]]) -> tuple[T, ...]:
    shared = tuple(found for found in of_files[0] if all(found in others for others in of_files))
    if not shared:
        each = "; ".join(", ".join(map(str, found)) for found in of_files)
        raise MaskFileError(
            f"no {name} is in all of the files: {each}",
            hint="plot them one by one; adaspa masks compare --steps A,B compares different steps",
        )
    return shared

"""Which masks of two files stand for the same, by their headers. Imports nothing heavy."""

from __future__ import annotations

from adaspa_cli.errors import MaskFileError
from adaspa_cli.maskfiles.description import Description
from adaspa_cli.maskfiles.header import Described

Pairs = list[tuple[int, int]]


def paired(first: Described, second: Described, steps: tuple[int, int] | None = None) -> tuple[Pairs, list[str]]:
    """The pairs of search steps, and the guidance branches, in which two files can be compared.

    Args:
        first, second: may be the same file.
        steps: search step of the first and of the second file; without it, all that both have.

    Raises:
        MaskFileError: the masks have different shapes, or no branch or step in common.
    """
    check_shapes(first, second)
    a, b = first.description, second.description
    pairs = [steps] if steps else [(step, step) for step in a.search_steps if step in b.search_steps]
    branches = [branch for branch in a.branches if branch in b.branches]
    known = all(x in a.search_steps and y in b.search_steps for x, y in pairs)
    if not pairs or not branches or not known:
        raise MaskFileError(
            f"nothing to compare: {first.path} has search steps {list(a.search_steps)} of {', '.join(a.branches)}, "
            f"{second.path} {list(b.search_steps)} of {', '.join(b.branches)}",
            hint="--steps A,B compares step A of the first file with step B of the second",
        )
    return pairs, branches


def check_shapes(first: Described, second: Described) -> None:
    """Refuse masks whose blocks do not stand for the same tokens.

    Raises:
        MaskFileError: names what differs.
    """
    theirs = _shape(second.description)
    for name, size in _shape(first.description).items():
        if size != theirs[name]:
            raise MaskFileError(
                f"masks of different shapes cannot be compared: {name} is {size} in {first.path} and "
                f"{theirs[name]} in {second.path}"
            )


def _shape(facts: Description) -> dict[str, int]:
    grid = {name: getattr(facts.layout, name) for name in ("frames", "height", "width")}
    sizes = {name: getattr(facts, name) for name in ("layers", "heads", "block_size", "video_blocks")}
    return grid | sizes

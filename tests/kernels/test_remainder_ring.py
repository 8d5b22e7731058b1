"""The barrier protocol of the summaries' kernel, played as in test_hopper_ring.py."""

from typing import Any

import pytest

pytest.importorskip("triton.experimental.gluon", reason="this triton has no Gluon")

from adaspa_kernels import hopper_remainder
from tests.kernels.gluon_on_cpu import Number
from tests.kernels.test_hopper_ring import BLOCK, Anything, Event, Place, Progress, Slots, play, record

PANELS = 2
SOURCES = {"Q": "Q", "pooled K": "K", "pooled V": "V", "out": "O"}


class RowPlace(Place):
    """Rows that a warpgroup loads to its registers, at once."""

    def load(self, _: object) -> Any:
        return Anything()


class Ring(Slots):
    """The ring as tiles, or as rows of two warpgroups."""

    rows = False

    def index(self, place: int) -> Any:
        return RowPlace(self.name, int(place)) if self.rows else Place(self.name, int(place))

    def _reinterpret(self, _: object, shape: list[int], __: object) -> "Ring":
        ring = Ring(self.name)
        ring.rows = shape[1] == BLOCK
        return ring


def memory() -> tuple[Any, ...]:
    return (Ring("ring"), Slots("full"), Slots("empty"), Anything(), Slots("opened"))


def items(count: int) -> tuple[Any, ...]:
    return (Anything(), count, Number(1), Number(count), False)


def copying_role(count: int, tiles: int, slots: int) -> list[Event]:
    arguments = {
        "sources": tuple(SOURCES), "memory": memory(), "items": items(count),
        "words": (Anything(), Number(1), Number(2 * count), tiles, (0, 0.0)),
        "SLOTS": slots, "PANELS": PANELS, "BLOCKS": 2,
    }  # fmt: skip
    return record(hopper_remainder, "_copy", arguments, _make_biases=lambda *_: None)


def merging_role(count: int, tiles: int, slots: int, reader: int, fixed: bool = True) -> list[Event]:
    arguments = {
        "targets": (Anything(), Anything(), Anything(), Progress()), "memory": memory(), "items": items(count),
        "sizes": (tiles, Number(count * 2 * BLOCK), 1.0, 6.0),
        "READER": reader, "SLOTS": slots, "D": PANELS * BLOCK, "dtype": Anything(), "FIXED": fixed,
    }  # fmt: skip
    return record(hopper_remainder, "_merge", arguments)


def copying_steps(events: list[Event]) -> list[tuple[Any, ...]]:
    """Steps of the copying warp; what is copied must fill its slot, each box once."""
    numbers = dict.fromkeys(SOURCES, 0)
    steps: list[tuple[Any, ...]] = []
    for position, event in enumerate(events):
        if event.kind == "wait":
            steps.append(("wait", "empty", event.slot, event.value))
        if event.kind != "expect":
            continue
        copies = [e.value for e in events[position + 1 : position + 1 + 2 * PANELS]]
        (source,) = {source for source, *_ in copies}
        assert event.value == len(copies) * BLOCK * BLOCK * 2
        places = {}
        for _, row, column, box in copies:
            assert box.place // (2 * PANELS) == event.slot
            # Tiles are panels of 128 rows; rows of queries and outputs are a half for each warpgroup.
            outer, inner = divmod(box.place % (2 * PANELS), 2)
            panel, half = (outer, inner) if source.startswith("pooled") else (inner, outer)
            assert column == panel * BLOCK
            places[half, panel] = row - half * BLOCK
        assert len(places) == 2 * PANELS
        assert len(set(places.values())) == 1
        steps.append(("load", event.slot, f"{SOURCES[source]}{numbers[source]}"))
        numbers[source] += 1
    return steps


def merging_steps(events: list[Event], order: list[str]) -> list[tuple[Any, ...]]:
    """Steps of a multiplying warpgroup, which waits for what passes the ring in ``order``."""
    names = iter(order)
    held: dict[int, str] = {}
    steps: list[tuple[Any, ...]] = []
    leaving = -1
    for event in events:
        if event.ring == "opened":
            continue
        if event.kind == "wait":
            held[event.slot] = name = next(names)
            steps.append(("wait", "full", event.slot, event.value))
            if name[0] in "QO":
                steps += [("read", event.slot, name), ("done", event.slot)]
        elif event.kind == "read":
            steps.append(("read", event.slot, held[event.slot]))
        elif event.kind == "store":
            leaving = event.slot // (2 * PANELS)
            steps.append(("hold", leaving))
        elif event.kind == "stored":
            steps.append(("done", leaving))
        else:
            steps.append((event.kind, event.slot))
    assert next(names, None) is None
    return steps


def order(count: int, tiles: int) -> list[str]:
    names = []
    for item in range(count):
        first = item * tiles
        middle = [name for i in range(first + 1, first + tiles) for name in (f"K{i}", f"V{i - 1}")]
        names += [f"Q{item}", f"K{first}", *middle, f"V{first + tiles - 1}", f"O{item}"]
    return names


@pytest.mark.parametrize("slots", [4, 5, 6])
@pytest.mark.parametrize(("count", "tiles"), [(1, 1), (1, 2), (1, 5), (2, 1), (3, 2)])
def test_neither_waits_for_ever_nor_reads_early(count: int, tiles: int, slots: int) -> None:
    copying = copying_steps(copying_role(count, tiles, slots))
    assert [step[2] for step in copying if step[0] == "load"] == order(count, tiles)
    roles = []
    for reader in (0, 1):
        events = merging_role(count, tiles, slots, reader)
        assert events == merging_role(count, tiles, slots, reader, fixed=False)
        roles.append(merging_steps(events, order(count, tiles)))
    play(copying, roles, slots)


def test_the_play_finds_an_output_given_back_before_it_left() -> None:
    steps = merging_steps(merging_role(2, 2, 5, 0), order(2, 2))
    hold = next(i for i, step in enumerate(steps) if step[0] == "hold")
    given_back = steps.index(("arrive", steps[hold][1]), hold)
    steps.insert(hold + 1, steps.pop(given_back))
    with pytest.raises(AssertionError, match="given back"):
        play(copying_steps(copying_role(2, 2, 5)), [steps] * 2, 5)


def test_the_play_finds_a_ring_that_is_too_short() -> None:
    """The output of an item is given back after the next one's first scores: it, Q, K0 and what follows need room."""
    with pytest.raises(AssertionError, match="deadlock"):
        play(copying_steps(copying_role(2, 2, 2)), [merging_steps(merging_role(2, 2, 2, 0), order(2, 2))] * 2, 2)

"""The Hopper kernels' barrier protocol, without a GPU: no deadlock, no tile read early or overwritten late.

The kernels' own functions are executed here as plain Python, with stand-ins for Gluon's names that write down every
barrier operation, copy and product of one role. The lists of both sides are then played against each other in every
order that the hardware may choose, the copies' delays included.

What this does not see: numbers (gluon_on_cpu.py has them), memory ordering, and what the compilers make of the code.
"""

import types
from typing import Any, NamedTuple

import pytest

pytest.importorskip("triton.experimental.gluon", reason="this triton has no Gluon")

from adaspa_kernels import hopper_block_sparse, hopper_block_sparse_copy, hopper_block_sums
from tests.kernels.gluon_on_cpu import Number, as_python

BLOCK, KEY_BLOCKS = 64, 40


class Event(NamedTuple):
    kind: str  # wait, expect, copy, read, done, arrive, stop, store, stored
    ring: str = ""  # the barriers: full, empty, q_full or q_empty; or what is read or stored
    slot: int = 0
    value: Any = None  # a parity, bytes, or what is copied or read


class Anything:
    """A tensor, descriptor or layout: whatever is done with it gives another one."""

    def __getattr__(self, _: str) -> "Anything":
        return self

    def __call__(self, *_: object, **__: object) -> "Anything":
        return self

    __getitem__ = __rshift__ = __rlshift__ = __mod__ = __ne__ = __call__  # type: ignore[assignment]
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __call__
    __lt__ = __gt__ = __ge__ = __and__ = __rand__ = __or__ = __eq__ = __call__  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


class Pointer(list[int]):
    """A row's list; adding moves the place that is read."""

    def __add__(self, offset: int) -> Any:  # type: ignore[override]
        return (self, int(offset))


class Progress:
    """Counters in global memory: taking a row gives the next one."""

    def __init__(self) -> None:
        self.taken = 0

    def __add__(self, _: int) -> "Progress":
        return self


class Slots:
    """Shared memory, by the name of what lies there."""

    def __init__(self, name: str) -> None:
        self.name = name

    def index(self, place: int) -> Any:
        return Place(self.name, int(place))

    def seen_as(self, *_: object) -> "Slots":
        return self


class Place(NamedTuple):
    name: str
    place: int

    def permute(self, _: object) -> "Place":
        return self

    def store(self, _: object) -> None:
        pass

    def load(self, _: object) -> "Place":
        return self


class Gluon:
    """Stand-ins for the names of Gluon that the kernels use; ``events`` is what they did."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.reads: list[list[Place]] = []

    # mbarrier, tma
    def wait(self, barrier: Place, phase: int) -> None:
        self.events.append(Event("wait", barrier.name, barrier.place, phase))

    def expect(self, barrier: Place, size: int) -> None:
        self.events.append(Event("expect", barrier.name, barrier.place, int(size)))

    def load_box(self, source: str, coordinates: list[int], barrier: Place, box: Place) -> None:
        self.events.append(Event("copy", barrier.name, barrier.place, (source, coordinates[2], coordinates[3], box)))

    def arrive(self, barrier: Place, count: int) -> None:
        assert count == 1
        self.events.append(Event("stop", barrier.name, barrier.place))

    def store_wait(self, pending: int) -> None:
        assert pending == 0
        self.events.append(Event("stored"))

    def store_box(self, _: object, __: object, box: Place) -> None:
        self.events.append(Event("store", box.name, box.place))

    # async_copy
    def mbarrier_arrive(self, barrier: Place, increment_count: bool) -> None:
        assert not increment_count
        self.events.append(Event("arrive", barrier.name, barrier.place))

    # products
    def warpgroup_mma(self, a: Any, b: Place, *_: object, **__: object) -> Anything:
        self.reads.append([place for place in (a, b) if isinstance(place, Place)])
        self.events += [Event("read", *place) for place in self.reads[-1]]
        return Anything()

    def warpgroup_mma_wait(self, pending: int, deps: list[Any]) -> Any:
        while len(self.reads) > pending:
            self.events += [Event("done", *place) for place in self.reads.pop(0)]
        return deps[0]

    # gl
    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if isinstance(condition, Anything):
            return Anything()
        return a if condition else b

    def maximum(self, a: Any, b: Any) -> Any:
        return Anything() if isinstance(a, Anything) or isinstance(b, Anything) else Number(max(a, b))

    def minimum(self, a: Any, b: Any) -> Any:
        return Anything() if isinstance(a, Anything) or isinstance(b, Anything) else Number(min(a, b))

    def cdiv(self, a: int, b: int) -> int:
        return -(-a // b)

    def load(self, pointer: Any, mask: Any = True, other: Any = 0) -> Any:
        if isinstance(pointer, Anything) or isinstance(mask, Anything):
            return Anything()
        entries, offset = pointer
        return Number(entries[offset] if mask else other)

    def atomic_add(self, progress: Progress, value: int, sem: str) -> Number:
        assert (value, sem) == (1, "relaxed")
        progress.taken += 1
        return Number(progress.taken - 1)

    static_range = range

    def __getattr__(self, _: str) -> Anything:
        return Anything()


def record(module: types.ModuleType, name: str, arguments: dict[str, Any], **replaced: Any) -> list[Event]:
    """Execute the jitted function ``name`` with Python numbers, its callees as they are or ``replaced``."""
    gluon = Gluon()
    as_python(module, gluon, **replaced)[name](**arguments)
    return gluon.events


class Schedule:
    """Entries in global memory: that of an item is its number."""

    def __add__(self, item: int) -> Any:
        return (range(item + 1), int(item))


def copying_role(counts: list[int], slots: int, panels: int, readers: int = 1, summaries: bool = False) -> list[Event]:
    """What a team's copying warp does for rows that keep every other block, one row after the other."""
    rows = [
        (*map(Number, (row, 0, 0, row, count)), Pointer(range(0, 2 * count, 2)), count < KEY_BLOCKS, True)
        for row, count in enumerate(counts)
    ]
    memory = tuple(map(Slots, ("q", "q_full", "q_empty", "ring", "full", "empty", "words", "record")))
    lists = (Schedule(), *[None] * 4, Number(KEY_BLOCKS), Number(len(rows)), Progress(), Anything(), Number(1))
    arguments = {
        "sources": ("Q", "K", "V", "pooled K", "pooled V"), "memory": memory, "lists": lists, "teams": 1,
        "TEAM": 0, "READERS": readers, "SLOTS": slots, "PANELS": panels, "IN_STEP": False,
        "SUMMARIES": summaries,
    }  # fmt: skip
    return record(
        hopper_block_sparse_copy, "copy_rows", arguments,
        _scheduled=lambda _, item: rows[item], _tell=lambda *_: None,
    )  # fmt: skip


def multiplying_role(
    counts: list[int], slots: int, panels: int, readers: int = 1, fixed: bool = True,
    summaries: bool = False, ragged: bool = False,
) -> list[Event]:  # fmt: skip
    """What a multiplying warpgroup does for the same rows."""
    said = iter([*counts, -1])
    pooled_tiles = iter([int(count < KEY_BLOCKS) for count in counts])

    count, pooled = hopper_block_sparse_copy.COUNT.value, hopper_block_sparse_copy.POOLED_TILES.value

    def told(_record: object, _team: int, word: int) -> Number:
        return Number({count: lambda: next(said), pooled: lambda: next(pooled_tiles)}.get(word, lambda: 0)())

    memory = tuple(map(Slots, ("q", "q_full", "q_empty", "ring", "full", "empty", "words", "record")))
    arguments = {
        "targets": (Anything(), Anything(), Anything()), "memory": memory,
        "sizes": (Number(KEY_BLOCKS * BLOCK), 1.0, 0, (0, 0.0)),
        "TEAM": 0, "TEAMS": 1, "READER": 0, "READERS": readers, "SLOTS": slots, "D": panels * BLOCK,
        "dtype": Anything(), "FIXED": fixed, "SUMMARIES": summaries, "RAGGED": ragged,
    }  # fmt: skip
    return record(
        hopper_block_sparse, "_attend", arguments,
        told=told, _write_down=lambda *_: None, _load_words=lambda _: Anything(),
    )  # fmt: skip


def tiles_of(events: list[Event], panels: int) -> list[tuple[str, int, tuple[int, ...]]]:
    """Fold the copies of the ring to (source, slot, starts of the halves), and check boxes, bytes and columns."""
    tiles = []
    position = 0
    while position < len(events):
        event = events[position]
        position += 1
        if event.kind != "expect" or event.ring != "full":
            continue
        copies = [e.value for e in events[position : position + 2 * panels]]
        assert event.value == len(copies) * BLOCK * BLOCK * 2
        starts: dict[int, int] = {}
        for source, row, column, box in copies:
            panel, half = divmod(box.place - event.slot * panels * 2, 2)
            assert source == copies[0][0]
            assert box.place // (panels * 2) == event.slot
            assert 0 <= panel < panels
            assert column == panel * BLOCK
            assert starts.setdefault(half, row) == row
        assert len({box.place for *_, box in copies}) == 2 * panels
        tiles.append((copies[0][0], event.slot, (starts[0], starts[1])))
    return tiles


def play(copying: list[tuple[Any, ...]], multiplying: list[list[tuple[Any, ...]]], slots: int) -> None:
    """Explore every order of the roles' steps and of the copies' ends.

    Steps: (wait, ring, slot, parity), (load, slot, name) which ends later by itself, (read, slot, name),
    (hold, slot) which reads what the role itself left there, (done, slot), (arrive, slot). A barrier's state is its
    parity and what is missing to end the phase.
    """
    roles = [copying, *multiplying]
    readers = len(multiplying)
    start = (
        (0,) * len(roles), ((0, 1),) * slots, ((0, readers),) * slots, (None,) * slots, frozenset(), frozenset()
    )  # fmt: skip
    seen, stack = {start}, [start]
    finished = False
    while stack:
        state = stack.pop()
        following = list(_next_states(state, roles, readers))
        if not following:
            at, *_, loading, _ = state
            assert all(a == len(steps) for a, steps in zip(at, roles, strict=True)), f"deadlock at steps {at}"
            assert not loading
            finished = True
        for other in following:
            if other not in seen:
                seen.add(other)
                stack.append(other)
    assert finished


def _arrived(barriers: tuple[tuple[int, int], ...], slot: int, count: int) -> tuple[tuple[int, int], ...]:
    parity, missing = barriers[slot]
    after = (parity ^ 1, count) if missing == 1 else (parity, missing - 1)
    return (*barriers[:slot], after, *barriers[slot + 1 :])


def _next_states(state: Any, roles: list[list[tuple[Any, ...]]], readers: int) -> Any:
    at, full, empty, content, loading, reading = state
    for slot, name in loading:  # a copy ends
        held = (*content[:slot], name, *content[slot + 1 :])
        yield at, _arrived(full, slot, 1), empty, held, loading - {(slot, name)}, reading
    for role, steps in enumerate(roles):
        if at[role] == len(steps):
            continue
        kind, *rest = steps[at[role]]
        moved = (*at[:role], at[role] + 1, *at[role + 1 :])
        if kind == "wait":
            ring, slot, parity = rest
            # The hardware's test: the phase of this parity is over when the current one has the other parity.
            if (full if ring == "full" else empty)[slot][0] != parity:
                yield moved, full, empty, content, loading, reading
        elif kind == "load":
            slot, name = rest
            assert not any(s == slot for s, _ in loading), f"two copies to slot {slot}"
            assert not any(s == slot for s, *_ in reading), f"{name} overwrites slot {slot} while it is read"
            torn = (*content[:slot], None, *content[slot + 1 :])
            yield moved, full, empty, torn, loading | {(slot, name)}, reading
        elif kind == "read":
            slot, name = rest
            assert content[slot] == name, f"slot {slot} holds {content[slot]}, not {name}"
            yield moved, full, empty, content, loading, reading | {(slot, role)}
        elif kind == "hold":
            (slot,) = rest
            yield moved, full, empty, content, loading, reading | {(slot, role)}
        elif kind == "done":
            (slot,) = rest
            yield moved, full, empty, content, loading, reading - {(slot, role)}
        else:
            (slot,) = rest
            assert (slot, role) not in reading, f"slot {slot} is given back while it is read"
            yield moved, full, _arrived(empty, slot, readers), content, loading, reading


def copying_steps(events: list[Event], panels: int, slots: int) -> list[tuple[Any, ...]]:
    """The steps of the copying role; tiles are named by source and number. The queries' place is one more slot."""
    numbers = {"K": 0, "V": 0, "Q": 0}
    tiles = iter(tiles_of(events, panels))
    steps: list[tuple[Any, ...]] = []
    for event in events:
        if event.kind == "wait":
            steps.append(("wait", "empty", slots if event.ring == "q_empty" else event.slot, event.value))
        elif event.kind == "expect" and event.ring == "full":
            source, slot, _ = next(tiles)
            steps.append(("load", slot, f"{source[-1]}{numbers[source[-1]]}"))
            numbers[source[-1]] += 1
        elif event.ring == "q_full" and event.kind in ("expect", "stop"):
            steps.append(("load", slots, f"Q{numbers['Q']}"))
            numbers["Q"] += 1
    return steps


def multiplying_steps(events: list[Event], order: list[str], slots: int, panels: int = 2) -> list[tuple[Any, ...]]:
    """The steps of a multiplying role, whose products read the tiles in ``order``.

    The output leaves through the queries' place, or through a slot, which the copy engine reads until it is stored.
    """
    names = iter(order)
    queries, held, leaving = -1, False, 0
    steps: list[tuple[Any, ...]] = []
    for event in events:
        slot = slots if event.ring.startswith("q") else event.slot
        if event.kind == "wait":
            steps.append(("wait", "full", slot, event.value))
            if event.ring == "q_full" and not held:
                queries, held = queries + 1, True
        elif event.kind == "read":
            steps.append(("read", slot, f"Q{queries}" if event.ring == "q" else next(names)))
        elif event.kind == "store":
            leaving = slots if event.ring == "q" else event.slot // (panels * 2)
            steps.append(("hold", leaving))
        elif event.kind == "stored":
            steps.append(("done", leaving))
        else:
            steps.append((event.kind, slot))
            held = held and event.ring != "q_empty"
    assert next(names, None) is None
    return steps


@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("panels", [1, 2])
@pytest.mark.parametrize("count", [*range(12), KEY_BLOCKS])
def test_every_listed_block_is_copied_once_for_k_and_once_for_v(count: int, panels: int, readers: int) -> None:
    tiles = tiles_of(copying_role([count], 3, panels, readers), panels)
    listed = range(KEY_BLOCKS) if count == KEY_BLOCKS else range(0, 2 * count, 2)
    past_the_end = KEY_BLOCKS * BLOCK * readers
    by_source = {s: [tile for source, _, tile in tiles if source == s] for s in "KV"}
    assert by_source["K"] == by_source["V"]
    starts = [start for tile in by_source["K"] for start in tile]
    if readers == 2:
        # A tile is one block of 128, in two halves.
        wanted = [block * 2 * BLOCK for block in reversed(listed)] or [past_the_end]
        assert starts == [start + half for start in wanted for half in (0, BLOCK)]
        return
    assert sorted(s for s in starts if s != past_the_end) == [block * BLOCK for block in listed]
    # The last block, which may be ragged, leads; the empty half follows it.
    if count:
        assert starts[0] == listed[-1] * BLOCK
    empty_halves = [i for i, start in enumerate(starts) if start == past_the_end]
    assert empty_halves == ([0, 1] if count == 0 else [1] if count % 2 else [])


@pytest.mark.parametrize(("slots", "readers"), [(3, 1), (4, 1), (6, 2)])
@pytest.mark.parametrize(
    "counts", [[n] for n in (*range(12), 17)] + [[5, 0, 1], [1, 1, 1, 1], [2, 7], [0, 0, 9]], ids=str
)
def test_a_team_neither_waits_for_ever_nor_reads_early(counts: list[int], slots: int, readers: int) -> None:
    """Teams share no barrier: lists of any lengths side by side are as many such plays."""
    events = multiplying_role(counts, slots, 2, readers)
    assert events == multiplying_role(counts, slots, 2, readers, fixed=False)
    steps = multiplying_steps(events, _order(counts, readers), slots)
    play(copying_steps(copying_role(counts, slots, 2, readers), 2, slots), [steps] * readers, slots + 1)


@pytest.mark.parametrize(("slots", "readers"), [(3, 1), (6, 1), (6, 2)])
@pytest.mark.parametrize(
    ("counts", "ragged"),
    [(counts, ragged) for counts in ([0], [1], [6], [3, 0, 2]) for ragged in (False, True)]
    + [([KEY_BLOCKS], False)],  # sees no summary that could be ragged
    ids=str,
)
def test_summaries_follow_the_list(counts: list[int], slots: int, readers: int, ragged: bool) -> None:
    events = multiplying_role(counts, slots, 2, readers, summaries=True, ragged=ragged)
    assert events == multiplying_role(counts, slots, 2, readers, fixed=False, summaries=True, ragged=ragged)
    copies = copying_role(counts, slots, 2, readers, summaries=True)
    steps = multiplying_steps(events, _order(counts, readers, summaries=True), slots)
    play(copying_steps(copies, 2, slots), [steps] * readers, slots + 1)
    pooled = [tile for source, _, tile in tiles_of(copies, 2) if source == "pooled K"]
    assert pooled == [(0, 64)] * sum(count < KEY_BLOCKS for count in counts)


@pytest.mark.parametrize("tokens", [1, 64, 128, 129, 700])
def test_three_warpgroups_share_the_ring_of_block_sums(tokens: int) -> None:
    shared = {
        "q_boxes": Slots("q"), "ring": Slots("ring"), "full": Slots("full"), "empty": Slots("empty"),
        "batch": Number(0), "head": Number(0), "SLOTS": 4,
    }  # fmt: skip
    tiles = -(-tokens // 128)
    copying = shared | {
        "q_source": "Q", "k_source": "K", "q_full": Slots("queries"), "tiles": tiles, "first_row": 0, "PANELS": 2
    }  # fmt: skip
    summing = shared | {
        "lse_ptr": Anything(), "sums_ptr": Anything(), "q_full": Place("queries", 0), "parts": Anything(),
        "stride_lb": 1, "stride_lh": 1, "stride_ll": 1, "weighed_tokens": 64, "query_tokens": 64, "key_tokens": tokens,
        "query_blocks": 1, "key_blocks": 2 * tiles, "scale_log2": 1.0, "log2_e": 1.0, "heads": 1,
        "first_row": Number(0), "INDEX": 0, "GROUP": 16, "STRIDE": 1, "D": 128, "dtype": Anything(),
    }  # fmt: skip
    events = record(hopper_block_sums, "_sum_blocks", summing)
    # The queries stay as they are, and have no part in the play.
    events = [event for event in events if not event.ring.startswith("q")]
    steps = multiplying_steps(events, [f"K{i}" for i in range(tiles)], 4)
    copies = [event for event in record(hopper_block_sums, "_copy", copying) if not event.ring.startswith("q")]
    play(copying_steps(copies, 2, 4), [steps] * 3, 4)


def test_the_play_finds_a_slot_given_back_too_early() -> None:
    steps = multiplying_steps(multiplying_role([9], 3, 2), _order([9], 1), 3)
    early = next(i for i, step in enumerate(steps) if step[0] == "done" and step[1] < 3)
    steps[early], steps[early + 1] = steps[early + 1], steps[early]
    with pytest.raises(AssertionError, match="given back"):
        play(copying_steps(copying_role([9], 3, 2), 2, 3), [steps], 4)


@pytest.mark.parametrize(("slots", "readers"), [(3, 1), (6, 2)])
def test_the_play_finds_an_output_overwritten_before_it_is_stored(slots: int, readers: int) -> None:
    steps = multiplying_steps(multiplying_role([2, 2], slots, 2, readers), _order([2, 2], readers), slots)
    hold = next(i for i, step in enumerate(steps) if step[0] == "hold")
    given_back = steps.index(("arrive", steps[hold][1]), hold)
    steps.insert(hold + 1, steps.pop(given_back))
    with pytest.raises(AssertionError, match="given back"):
        play(copying_steps(copying_role([2, 2], slots, 2, readers), 2, slots), [steps] * readers, slots + 1)


def test_the_play_finds_queries_overwritten_before_they_are_read() -> None:
    steps = multiplying_steps(multiplying_role([4, 2], 3, 2), _order([4, 2], 1), 3)
    given_back = steps.index(("arrive", 3))
    last_read = max(i for i, step in enumerate(steps[:given_back]) if step == ("read", 3, "Q0"))
    steps.insert(last_read + 1, steps.pop(given_back))
    with pytest.raises(AssertionError, match="slot 3 is given back"):
        play(copying_steps(copying_role([4, 2], 3, 2), 2, 3), [steps], 4)


def test_the_play_finds_a_ring_that_is_too_short() -> None:
    """K(i+1) is waited for while V(i-1) is held: with one slot nothing moves."""
    steps = multiplying_steps(multiplying_role([9], 1, 2), _order([9], 1), 1)
    with pytest.raises(AssertionError, match="deadlock"):
        play(copying_steps(copying_role([9], 1, 2), 2, 1), [steps], 2)


def _order(counts: list[int], readers: int, summaries: bool = False) -> list[str]:
    """Names of the tiles in the order of the products that read them."""
    order: list[str] = []
    first = 0
    for count in counts:
        end = first + max(1, count if readers == 2 else (count + 1) // 2) + (summaries and count < KEY_BLOCKS)
        order += [f"K{first}", *(name for i in range(first + 1, end) for name in (f"K{i}", f"V{i - 1}")), f"V{end - 1}"]
        first = end
    return order

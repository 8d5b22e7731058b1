"""AdaCache: the table's entry for planted distances, the motion factor, and a schedule for each block."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaspa_cli.attention import TokenLayout
from adaspa_cli.caching.adacache import AdaCache, motion, motion_factor, relative_distance, reuses
from adaspa_cli.config.caches import AdaCacheConfig
from adaspa_cli.hooks.clock import Listener
from adaspa_cli.models.families.hunyuan_video import FAMILY
from adaspa_cli.models.forward import Row

FRAMES, STEPS = 3, 12
LAYOUT = TokenLayout(FRAMES, 2, 2, text_tokens=2, text_position="last")


class Clock:
    def __init__(self) -> None:
        self.step, self.steps = 0, STEPS
        self.listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        self.listeners.append(listener)

    def ignore(self, listener: Listener) -> None:
        self.listeners.remove(listener)


class Block(nn.Module):
    """Adds a residual that the test plants for each step, and notes the steps at which it is computed."""

    def __init__(self, clock: Clock, residual: Any) -> None:
        super().__init__()
        self.clock, self.residual = clock, residual
        self.computed: list[int] = []

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        self.computed.append(self.clock.step)
        return hidden_states + self.residual(self.clock.step), encoder_hidden_states + 7


class Transformer(nn.Module):
    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            video, text = block(video, text)
        return video, text


class Blocks(type(FAMILY)):  # type: ignore[misc]
    """Blocks that take and return video and text, in a transformer that has nothing else."""

    def blocks(self, transformer: Any) -> list[Any]:
        return list(transformer.blocks)


def attached(transformer: Transformer, rows: list[Row]) -> Any:
    """What a cache reads of an attachment, all of whose tokens are here."""
    return SimpleNamespace(
        family=Blocks(),
        transformers=[transformer],
        blocks=list(transformer.blocks),
        attentions=[],
        rows=rows,
        over_tokens=lambda sums: sums,
        stages=lambda _steps: (),
        whole_video=lambda x: x,
    )


def run(*residuals: Any, rows: int = 1, **settings: Any) -> tuple[list[list[int]], list[Tensor], dict[str, Any]]:
    """Steps at which each block is computed, the outputs, and the report."""
    clock: Any = Clock()
    blocks = [Block(clock, residual) for residual in residuals]
    transformer = Transformer(blocks)
    attachment = attached(transformer, [Row("cond", sample, LAYOUT) for sample in range(rows)])
    cache = AdaCache(AdaCacheConfig(**settings), attachment, clock)
    for listener in clock.listeners:
        listener.start(STEPS)
    outputs = []
    for step in range(STEPS):
        clock.step = step
        outputs.append(transformer(torch.zeros(rows, LAYOUT.video_tokens, 4), torch.zeros(rows, 2, 4))[0])
    report = cache.report()
    cache.remove()
    return [block.computed for block in blocks], outputs, report


def growing(rate: float) -> Any:
    """A residual that is alike in all frames and grows by ``rate`` of its size at 0 with each step."""
    return lambda step: torch.full((1, LAYOUT.video_tokens, 4), 1 + rate * step)


STILL = {"adacache_motion": False}


@pytest.mark.parametrize(
    ("distance", "entry"),
    [(0.0, 5), (0.0799, 5), (0.08, 4), (0.2, 3), (0.3, 2), (0.39, 1), (0.4, 0), (3.0, 0), (float("nan"), 0)],
)
def test_the_table_gives_the_entry_of_a_distance(distance: float, entry: int) -> None:
    assert reuses(distance, AdaCacheConfig()) == entry


def test_a_table_may_have_one_entry() -> None:
    settings = AdaCacheConfig(adacache_thresholds=(), adacache_reuses=(2,))
    assert reuses(0.0, settings) == reuses(9.0, settings) == 2


def test_the_distance_is_relative_and_in_l1() -> None:
    old, new = torch.tensor([[[1.0, -3.0]]]), torch.tensor([[[2.0, -3.5]]])
    assert float(relative_distance(new, old)) == pytest.approx(1.5 / 4)
    assert float(relative_distance(old.bfloat16(), old.bfloat16())) == 0


def test_motion_compares_neighbouring_frames() -> None:
    alike = torch.ones(1, FRAMES * 4, 2)
    assert float(motion(alike, FRAMES)) == 0
    frames = torch.tensor([1.0, 3.0, 3.0]).repeat_interleave(4)[None, :, None]
    assert float(motion(frames, FRAMES)) == pytest.approx((2 + 0) / ((3 + 3) + (1 + 3)))
    opposite = torch.tensor([1.0, -1.0, 1.0]).repeat_interleave(4)[None, :, None]
    assert float(motion(opposite, FRAMES)) == 1


def test_the_motion_factor_is_score_and_gradient_over_the_reference() -> None:
    now, before = torch.tensor(0.5), torch.tensor(0.2)
    assert float(motion_factor(now, now, 1, 0.25)) == pytest.approx(2.0)
    assert float(motion_factor(now, before, 3, 0.25)) == pytest.approx((0.5 + 0.3 / 3) / 0.25)
    assert float(motion_factor(before, now, 3, 0.25)) == pytest.approx((0.2 + 0.3 / 3) / 0.25)


@pytest.mark.parametrize(
    ("rate", "computed"),
    [
        (0.0, [0, 1, 7, 10, 11]),  # distance 0: 5 reuses; the last two steps are computed in any case
        (0.35, [0, 1, 3, 6, 10, 11]),  # distances 0.35, 0.7 / 1.35 / 2 = 0.26, 1.05 / 2.05 / 3 = 0.17
        (0.5, [0, 1, 2, 4, 7, 10, 11]),  # distances 0.5, 0.33, 1 / 2 / 2 = 0.25, 1.5 / 3 / 3 = 0.17
    ],
)
def test_a_residual_is_reused_as_often_as_its_distance_allows(rate: float, computed: list[int]) -> None:
    """The distance is the change over the size before, per step; residuals grow by a constant, so it falls."""
    (steps,), outputs, report = run(growing(rate), **STILL)
    assert steps == computed
    assert report["computed"] == len(computed)
    assert report["possible"] == STEPS
    assert report["skipped"] == pytest.approx(1 - len(computed) / STEPS)
    for step, output in enumerate(outputs):
        source = max(s for s in computed if s <= step)
        assert torch.equal(output, growing(rate)(source))


def test_blocks_have_schedules_of_their_own() -> None:
    (calm, wild), _, _ = run(growing(0.0), lambda step: growing(0.0)(0) * (-1) ** step, **STILL)
    assert calm == [0, 1, 7, 10, 11]
    assert wild == list(range(STEPS))


def test_text_residuals_are_reused_too() -> None:
    clock: Any = Clock()
    block = Block(clock, growing(0.0))
    transformer = Transformer([block])
    attachment = attached(transformer, [Row("cond", 0, LAYOUT)])
    cache = AdaCache(AdaCacheConfig(), attachment, clock)
    for clock.step in range(3):
        _, text = transformer(torch.zeros(1, LAYOUT.video_tokens, 4), torch.zeros(1, 2, 4))
        assert (text == 7).all()
    assert block.computed == [0, 1]
    cache.remove()
    assert "forward" not in vars(block)


def test_a_video_that_moves_is_computed_more_often() -> None:
    """The same distances, alike in all frames or not: a motion of 0 makes every distance 0."""
    rate = 0.5
    (still,), _, report = run(growing(rate))
    assert still == [0, 1, 7, 10, 11]
    assert report["motion"] == 0
    sign = torch.tensor([1.0, -1.0, 1.0]).repeat_interleave(4)[None, :, None]
    (moving,), _, report = run(lambda step: growing(rate)(step) * sign)
    (plain,), _, _ = run(growing(rate), **STILL)
    assert report["motion"] == 1
    assert len(still) < len(plain) < len(moving)


def test_a_motion_at_the_reference_changes_nothing() -> None:
    sign = torch.tensor([1.0, -1.0, 1.0]).repeat_interleave(4)[None, :, None]
    (moving,), _, _ = run(lambda step: growing(0.35)(step) * sign, adacache_motion_reference=1.0)
    (plain,), _, _ = run(growing(0.35), **STILL)
    assert moving == plain


def test_the_rows_of_a_batch_share_a_schedule() -> None:
    """One row at rest does not hide the other's change."""
    moves = torch.tensor([0.0, 2.0])[:, None, None].expand(2, LAYOUT.video_tokens, 4)
    (steps,), _, _ = run(lambda step: 1 + moves * (step % 2), rows=2, **STILL)
    assert steps == list(range(STEPS))


def test_branches_in_passes_of_their_own_have_residuals_and_schedules_of_their_own() -> None:
    """One branch rests and adds 1, the other alternates between 5 and -5."""
    clock, rows = Clock(), [Row("cond", 0, LAYOUT)]
    planted = {"cond": lambda _step: 1.0, "uncond": lambda step: 5.0 * (-1) ** step}
    block = Block(clock, lambda step: planted[rows[0].branch](step))
    transformer = Transformer([block])
    attachment = attached(transformer, rows)
    cache = AdaCache(AdaCacheConfig(**STILL), attachment, clock)
    for clock.step in range(6):
        for branch, add in planted.items():
            rows[0] = Row(branch, 0, LAYOUT)
            video, _ = transformer(torch.zeros(1, LAYOUT.video_tokens, 4), torch.zeros(1, 2, 4))
            assert (video == add(clock.step)).all()
    assert block.computed == [0, 0, 1, 1, 2, 3, 4, 5]
    cache.remove()

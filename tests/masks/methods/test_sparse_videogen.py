"""Sparse VideoGen: its two bands, the order that makes the temporal one a band, and who gets which."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adaspa_cli.attention import TokenLayout, resolve
from adaspa_cli.hooks.clock import StepClock
from adaspa_cli.masks import Call, MaskPolicy
from adaspa_cli.masks.methods.sparse_videogen import SparseVideoGen, band, kept_tokens, position_major
from adaspa_cli.masks.plan import ESTIMATE
from adaspa_cli.models.forward import Row
from adaspa_cli.sampling.engine import AttentionEngine

BLOCK, SIZE, CPU = 16, (16, 16), torch.device("cpu")
LAYOUTS = {
    "text last": TokenLayout(8, 4, 8, 24, "last"),
    "text first": TokenLayout(8, 4, 8, 24, "first"),
    "straddling, text last": TokenLayout(9, 5, 5, 20, "last"),
    "straddling, text first": TokenLayout(9, 5, 5, 20, "first"),
    "ragged, no text": TokenLayout(9, 5, 5, 0, "last"),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def call(layout: TokenLayout, step: int = 3, layer: int = 0) -> Call:
    return Call(layer, step, "cond", 0, layout)


def heads(layout: TokenLayout, *kinds: str) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v whose heads attend within the frame (spatial) or within the position (temporal), and to text a little."""
    token = torch.arange(layout.video_tokens)
    place = {"spatial": token // (layout.height * layout.width), "temporal": token % (layout.height * layout.width)}
    width = max(layout.frames, layout.height * layout.width)
    x = torch.zeros(1, len(kinds), layout.tokens, width)
    for head, kind in enumerate(kinds):
        video = slice(layout.video_start, layout.video_start + layout.video_tokens)
        x[0, head, video] = F.one_hot(place[kind], width).float()
    v = torch.randn(1, len(kinds), layout.tokens, width, generator=torch.Generator().manual_seed(0))
    return 9 * x, x, v


def brute_force_band(layout: TokenLayout, sparsity: float, first_frame: bool) -> Tensor:
    """bool [Nq, Nk], one block at a time."""
    blocks, video = layout.blocks(BLOCK), list(layout.video_blocks(BLOCK))
    k = max(1, round((1 - sparsity) * len(video)))
    first = range(layout.video_start, layout.video_start + layout.height * layout.width)
    sink = [block for block in video if {*range(block * BLOCK, (block + 1) * BLOCK)} & {*first}] if first_frame else []
    sink = sink[: k // 2]
    others = [block for block in video if block not in sink]
    kept = torch.ones(blocks, blocks, dtype=torch.bool)
    for row in video:
        width = k - len(sink)
        start = row - width // 2
        start = max(others[0], min(start, others[-1] + 1 - width))
        for column in video:
            kept[row, column] = column in sink or start <= column < start + width
    return kept


@layouts
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("first_frame", [True, False])
def test_a_band_and_the_first_frame(layout: TokenLayout, sparsity: float, first_frame: bool) -> None:
    mask = band(layout, SIZE, sparsity, CPU, first_frame=first_frame)
    assert torch.equal(mask.to_bool()[0], brute_force_band(layout, sparsity, first_frame))


def test_the_spatial_mask_holds_the_first_frame_and_the_own_one_and_its_neighbours() -> None:
    """16 frames of one block each, and the half of them kept: the first, and seven round the own."""
    layout = TokenLayout(16, 4, 4, 0, "last")
    kept = band(layout, SIZE, 0.5, CPU, first_frame=True).to_bool()[0]
    assert kept[8].nonzero()[:, 0].tolist() == [0, *range(5, 12)]
    assert kept[0].nonzero()[:, 0].tolist() == list(range(8))
    assert kept[15].nonzero()[:, 0].tolist() == [0, *range(9, 16)]


def test_the_first_frame_takes_at_most_half_of_what_a_row_keeps() -> None:
    layout = TokenLayout(2, 8, 8, 0, "last")  # each frame four blocks, of which a row keeps two
    kept = band(layout, SIZE, 0.75, CPU, first_frame=True).to_bool()[0]
    assert kept[6].nonzero()[:, 0].tolist() == [0, 6]


@layouts
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_the_density_of_the_video_is_what_sparsity_leaves(layout: TokenLayout, sparsity: float) -> None:
    """k / Nv with k = round((1-γ) Nv): within half a block a row of 1-γ."""
    video = layout.video_blocks(BLOCK)
    q, k, v = heads(layout, "spatial", "temporal")
    kept = SparseVideoGen(sparsity, 0, BLOCK).estimate(call(layout), q, k, v, 1.0).mask.to_bool()
    density = kept[:, video.start : video.stop, video.start : video.stop].float().mean((-1, -2))
    assert ((density - (1 - sparsity)).abs() <= 0.5 / len(video) + 1e-6).all()


@layouts
def test_the_order_puts_a_position_s_frames_side_by_side_and_leaves_text(layout: TokenLayout) -> None:
    forward, backward = position_major(layout, CPU)
    positions, start = layout.height * layout.width, layout.video_start
    for frame in (0, 1, layout.frames - 1):
        for position in (0, 3, positions - 1):
            assert forward[start + position * layout.frames + frame] == start + frame * positions + position
    text = [place for place in range(layout.tokens) if not start <= place < start + layout.video_tokens]
    assert forward[text].tolist() == text
    assert torch.equal(forward[backward], torch.arange(layout.tokens))


@layouts
@pytest.mark.parametrize("kinds", [("spatial", "temporal", "spatial"), ("temporal",), ("spatial",)])
def test_heads_are_classified_by_what_they_attend_to(layout: TokenLayout, kinds: tuple[str, ...]) -> None:
    found = SparseVideoGen(0.5, 0, BLOCK).estimate(call(layout), *heads(layout, *kinds), 1.0)
    assert found.order is not None
    assert found.order.moved.tolist() == [kind == "temporal" for kind in kinds]
    expected = {
        "spatial": brute_force_band(layout, 0.5, first_frame=True),
        "temporal": brute_force_band(layout, 0.5, first_frame=False),
    }
    for kept, kind in zip(found.mask.to_bool(), kinds, strict=True):
        assert torch.equal(kept, expected[kind])


def test_heads_are_classified_in_groups_as_all_at_once() -> None:
    """So many rows that the three heads come in two groups."""
    layout = LAYOUTS["straddling, text last"]
    tensors = heads(layout, "spatial", "temporal", "temporal")
    whole = SparseVideoGen(0.5, 0, BLOCK).estimate(call(layout), *tensors, 1.0)
    single = SparseVideoGen(0.5, 0, BLOCK, sampled_rows=50_000).estimate(call(layout), *tensors, 1.0)
    assert torch.equal(whole.mask.to_bool(), single.mask.to_bool())


def test_the_sample_is_of_video_and_decided_by_seed_step_and_layer() -> None:
    layout = LAYOUTS["straddling, text first"]
    policy = SparseVideoGen(0.5, 0, BLOCK)
    first = policy.sample(call(layout))
    assert torch.equal(first, policy.sample(call(layout)))
    others = [policy.sample(call(layout, 4)), policy.sample(call(layout, 3, 1))]
    others.append(SparseVideoGen(0.5, 0, BLOCK, seed=1).sample(call(layout)))
    assert not any(torch.equal(first, other) for other in others)
    assert first.min() >= layout.video_start
    assert first.max() < layout.video_start + layout.video_tokens
    assert first.shape == (64,)


@layouts
def test_the_tokens_that_rows_keep(layout: TokenLayout) -> None:
    mask = band(layout, SIZE, 0.6, CPU, first_frame=False)
    forward, backward = position_major(layout, CPU)
    kept = kept_tokens(mask, torch.arange(layout.tokens), backward)
    whole = mask.to_bool()[0].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    whole = whole[: layout.tokens, : layout.tokens]
    assert torch.equal(kept[forward][:, forward], whole)


def run(policy: MaskPolicy, layout: TokenLayout, *tensors: Tensor) -> tuple[AttentionEngine, Tensor]:
    """The engine's output of one call at step 0, on the backend that is the truth."""

    class Scheduler:
        def set_timesteps(self, steps: int) -> None:
            self.timesteps = range(steps)

        def step(self) -> None:
            pass

    pipe = SimpleNamespace(scheduler=Scheduler())
    engine = AttentionEngine(lambda _steps: policy, resolve("reference", CPU), StepClock(pipe))
    pipe.scheduler.set_timesteps(1)
    return engine, engine(0, Row("cond", 0, layout), *tensors)


@layouts
def test_attention_is_that_of_the_permuted_mask(layout: TokenLayout) -> None:
    """A pair of tokens is kept where their places in the head's order lie in a kept block."""
    sparsity = 0.6
    q, k, v = heads(layout, "temporal", "spatial", "temporal")
    scale = q.shape[-1] ** -0.5
    q = q / scale
    engine, out = run(SparseVideoGen(sparsity, 0, BLOCK), layout, q, k, v)
    assert [entry.plan for entry in engine.calls] == [ESTIMATE]

    positions = layout.height * layout.width
    places = torch.arange(layout.tokens)
    temporal_places = places.clone()
    for token in range(layout.video_tokens):
        frame, position = divmod(token, positions)
        temporal_places[layout.video_start + token] = layout.video_start + position * layout.frames + frame
    for head, (place, first_frame) in enumerate([(temporal_places, False), (places, True), (temporal_places, False)]):
        blocks = place // BLOCK
        kept = brute_force_band(layout, sparsity, first_frame)[blocks[:, None], blocks]
        expected = F.scaled_dot_product_attention(q[0, head], k[0, head], v[0, head], attn_mask=kept)
        # Float32 sums in another order.
        torch.testing.assert_close(out[0, head], expected, rtol=1e-5, atol=1e-5)


def test_weights_too_small_for_a_float_do_not_decide() -> None:
    """A mask that keeps next to no weight of a row is worse than the other, and no NaN."""
    layout = TokenLayout(8, 4, 4, 0, "last")
    q, k, v = heads(layout, "temporal")
    found = SparseVideoGen(0.8, 0, BLOCK).estimate(call(layout), 1000 * q, k, v, 1.0)
    assert found.order is not None
    assert found.order.moved.tolist() == [True]

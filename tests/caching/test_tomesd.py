"""Token merging: exact where merged tokens are alike, the asked ratio, text untouched, memory bounded."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adaspa_cli import apply
from adaspa_cli.attention import TokenLayout, dense_attention
from adaspa_cli.caching.tomesd import TokenMerging, best_match, plan_merge
from adaspa_cli.masks.plan import MERGED
from tests.pipelines import cogvideox, hunyuan_video, latents

HEADS, DIM = 3, 16
SCALE = DIM**-0.5
GRID = (1, 2, 2)


def layout(position: Any = "last", frames: int = 2, height: int = 4, width: int = 6) -> TokenLayout:
    return TokenLayout(frames, height, width, text_tokens=5, text_position=position)


def random_qkv(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, HEADS, tokens, DIM, generator=random) for _ in range(3))
    return 2 * q, k, v


def video_start(at: TokenLayout) -> int:
    return at.text_tokens if at.text_position == "first" else 0


def cells(at: TokenLayout) -> Tensor:
    """For each token of the row the corner of its 2 x 2 cell; text stands for itself."""
    index = torch.arange(at.video_tokens).reshape(at.frames, at.height, at.width)
    corner = index[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2).flatten()
    start = video_start(at)
    own = torch.arange(at.tokens)
    own[start : start + at.video_tokens] = corner + start
    return own


@pytest.mark.parametrize("position", ["first", "last"])
def test_attention_is_exact_where_merged_tokens_are_alike(position: Any) -> None:
    at = layout(position)
    q, k, v = (x[:, :, cells(at)] for x in random_qkv(at.tokens))
    merging = TokenMerging(0.75, GRID)
    out, density = merging.attend(q, k, v, SCALE, at)
    expected, _ = dense_attention(q, k, v, backend="reference")
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert merging.merged == 0.75
    kept = at.tokens - at.video_tokens * 3 // 4
    assert torch.allclose(density, torch.full((HEADS,), (kept / at.tokens) ** 2))


def test_planted_duplicates_are_what_is_merged() -> None:
    """Half of the sources are copies of their corner, and just as many are to be merged."""
    at = layout()
    q, k, v = random_qkv(at.tokens)
    own = cells(at)
    sources = (own != torch.arange(at.tokens)).nonzero()[:, 0]
    copies = sources[::2]
    for x in (q, k, v):
        x[:, :, copies] = x[:, :, own[copies]]
    plan = plan_merge(k, at, len(copies) / at.video_tokens, GRID)
    assert sorted(plan.merged.tolist()) == copies.tolist()
    assert torch.equal(plan.kept[plan.target[copies]], own[copies])
    torch.testing.assert_close(plan.unmerge(plan.merge(v)), v)
    expected, _ = dense_attention(q, k, v, backend="reference")
    out, _ = TokenMerging(len(copies) / at.video_tokens, GRID).attend(q, k, v, SCALE, at)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_merged_tokens_are_means() -> None:
    at = layout()
    _, k, v = random_qkv(at.tokens)
    plan = plan_merge(k, at, 0.5, GRID)
    means = plan.merge(v)
    for place, size in enumerate(plan.sizes.tolist()):
        members = (plan.target == place).nonzero()[:, 0]
        assert len(members) == size
        torch.testing.assert_close(means[:, :, place], v[:, :, members].mean(2))


def test_what_is_merged_goes_to_the_most_similar_token_of_the_grid() -> None:
    at = layout()
    _, k, _ = random_qkv(at.tokens)
    plan = plan_merge(k, at, 0.5, GRID)
    corners = cells(at)[: at.video_tokens].unique()
    direction = torch.nn.functional.normalize(k[0].mean(0), dim=-1)
    similarity = direction[: at.video_tokens] @ direction[corners].T
    best, match = similarity.max(-1)
    assert torch.equal(plan.kept[plan.target[plan.merged]], corners[match[plan.merged]])
    left = [token for token in range(at.video_tokens) if token not in {*plan.merged.tolist(), *corners.tolist()}]
    assert best[plan.merged].min() >= best[left].max()


@pytest.mark.parametrize("position", ["first", "last"])
@pytest.mark.parametrize("shape", [(2, 4, 6), (3, 5, 7), (1, 2, 2)])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5])
def test_the_ratio_is_honoured_and_text_and_grid_stay(ratio: float, shape: tuple[int, int, int], position: Any) -> None:
    at = layout(position, *shape)
    q, k, v = random_qkv(at.tokens)
    plan = plan_merge(k, at, ratio, GRID)
    assert len(plan.merged) == round(ratio * at.video_tokens)
    assert len(plan.kept) + len(plan.merged) == at.tokens
    assert plan.sizes.sum() == at.tokens
    start = video_start(at)
    assert ((plan.merged >= start) & (plan.merged < start + at.video_tokens)).all()
    inside = plan.merged - start
    row, column = inside // at.width % at.height, inside % at.width
    assert ((row % 2 == 1) | (column % 2 == 1)).all()
    assert torch.equal(plan.kept, plan.kept.sort().values)
    assert torch.equal(plan.kept[plan.target[plan.kept]], plan.kept)
    out, _ = TokenMerging(ratio, GRID).attend(q, k, v, SCALE, at)
    assert out.shape == q.shape
    if ratio == 0:
        torch.testing.assert_close(out, dense_attention(q, k, v, backend="reference")[0], rtol=1e-5, atol=1e-5)


def test_a_grid_that_leaves_too_few_sources_merges_them_all() -> None:
    """Five by seven has twelve corners of 35 tokens, more than a quarter."""
    at = layout("last", 1, 5, 7)
    plan = plan_merge(random_qkv(at.tokens)[1], at, 0.75, GRID)
    assert len(plan.merged) == 35 - 12


def test_pieces_find_the_same_matches_and_hold_no_more_than_they_may() -> None:
    sources, destinations = (torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (700, 300))
    whole = best_match(sources, destinations)
    with Largest() as largest:
        pieces = best_match(sources, destinations, at_once=1 << 12)
    assert largest.elements <= 1 << 12
    for found, expected in zip(pieces, whole, strict=True):
        torch.testing.assert_close(found, expected)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor storage that an operator returns."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                size = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.elements = max(self.elements, size)
        return result


def test_no_tensor_is_as_large_as_the_square_of_the_tokens() -> None:
    """Nor of the merged ones: the largest are the similarities of a piece, which here are all."""
    at = layout(frames=5, height=16, width=16)
    q, k, v = random_qkv(at.tokens)
    with Largest() as largest:
        TokenMerging(0.5, GRID).attend(q, k, v, SCALE, at)
    video = at.tokens - at.text_tokens
    assert largest.elements <= max(video // 4 * (video - video // 4), q.numel())


@pytest.mark.parametrize("make", [hunyuan_video, cogvideox], ids=["hunyuan", "cogvideox"])
def test_a_pipeline_merges_half_of_its_video_tokens_and_is_restored(make: Any) -> None:
    pipe = make()
    plain = latents(pipe)
    with apply(pipe, "tomesd") as handle:
        made = latents(pipe)
        assert torch.equal(latents(pipe), made)
    assert handle.backend == "sdpa"
    assert handle.merging is not None
    assert handle.merging.merged == 0.5
    assert {call.plan for call in handle.engine.calls} == {MERGED}
    assert torch.isfinite(made).all()
    assert not torch.allclose(made, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(latents(pipe), plain)


@pytest.mark.parametrize("make", [hunyuan_video, cogvideox], ids=["hunyuan", "cogvideox"])
def test_a_pipeline_that_merges_nothing_makes_the_same_video(make: Any) -> None:
    pipe = make()
    plain = latents(pipe)
    with apply(pipe, "tomesd", tome_ratio=0.0):
        torch.testing.assert_close(latents(pipe), plain, rtol=1e-4, atol=1e-4)


def test_a_cache_works_beside_merging() -> None:
    pipe = hunyuan_video()
    with apply(pipe, "tomesd", cache="pab", pab_timesteps=(-1, 2000)) as handle:
        latents(pipe)
    assert handle.cache is not None
    assert handle.cache.report()["skipped"] == 0.5
    assert handle.merging is not None
    assert handle.merging.merged == 0.5

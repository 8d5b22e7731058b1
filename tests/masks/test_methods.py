"""What all methods share: warm-up, text sink, odd sizes, and searches that need little memory and no waiting."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from adaspa_cli.attention import TokenLayout
from adaspa_cli.config.load import method_config
from adaspa_cli.config.methods import Algorithm, AlgorithmConfig, EstimatingConfig, SparseConfig, names_of
from adaspa_cli.masks import Call, FoundMask, MaskPolicy
from adaspa_cli.masks.methods.frame_region import FrameRegion
from adaspa_cli.masks.methods.minference import MInference
from adaspa_cli.masks.methods.registry import make_policy
from adaspa_cli.masks.methods.sparse_videogen import SparseVideoGen
from adaspa_cli.masks.plan import DENSE, ESTIMATE

BLOCK, HEADS, HEAD_DIM = 16, 3, 32
ESTIMATING, METHODS = names_of(EstimatingConfig), names_of(SparseConfig)
LAYOUTS = {
    "text last": TokenLayout(8, 4, 8, 32, "last"),
    "text first": TokenLayout(8, 4, 8, 32, "first"),
    "straddling, text last": TokenLayout(7, 5, 5, 20, "last"),
    "straddling, text first": TokenLayout(7, 5, 5, 20, "first"),
    "no text, ragged": TokenLayout(7, 5, 5, 0, "last"),
    "no text, ragged, first": TokenLayout(7, 5, 5, 0, "first"),
    "one frame": TokenLayout(1, 9, 11, 20, "last"),
    "one frame, text first": TokenLayout(1, 9, 11, 20, "first"),
    "frames of a quarter block": TokenLayout(21, 2, 2, 9, "last"),
    "two frames": TokenLayout(2, 8, 8, 5, "first"),
    "one video block": TokenLayout(2, 3, 3, 7, "last"),
    "less than one block": TokenLayout(1, 2, 3, 4, "last"),
    "less than one block, text first": TokenLayout(1, 2, 3, 4, "first"),
    "less than one block, no text": TokenLayout(1, 2, 3, 0, "last"),
}


def policy(method: str, sparsity: float = 0.7, search_steps: tuple[int, ...] = (2, 4)) -> MaskPolicy:
    settings = {"sparsity": sparsity, "block_size": BLOCK, "search_steps": search_steps, "head_adaptive": False}
    return make_policy(method_config(method, settings).algorithm, 6)


def find(method: MaskPolicy, layout: TokenLayout, seed: int = 0, head_dim: int = HEAD_DIM) -> FoundMask:
    """A mask from random q, k and v, or from random block sums."""
    call = Call(0, 2, "cond", 0, layout)
    random = torch.Generator().manual_seed(seed)
    if method.decide(call, None) == ESTIMATE:
        q, k, v = (torch.randn(1, HEADS, layout.tokens, head_dim, generator=random) for _ in range(3))
        return method.estimate(call, q, k, v, head_dim**-0.5)
    blocks = layout.blocks(BLOCK)
    return method.search(call, torch.rand(HEADS, blocks, blocks, generator=random))


@pytest.mark.parametrize("method", ESTIMATING)
def test_estimates_are_made_at_every_step_after_warm_up(method: str) -> None:
    layout = LAYOUTS["text last"]
    actions = [policy(method).decide(Call(0, step, "cond", 0, layout), None) for step in range(6)]
    assert actions == [DENSE] * 2 + [ESTIMATE] * 4
    assert not policy(method).keeps_lse(2)


def test_frame_regions_are_searched_when_adaspa_searches() -> None:
    layout = LAYOUTS["text last"]
    for cache in (True, False):
        ours, theirs = (
            make_policy(method_config(name, {"search_steps": (1, 3), "lse_cache": cache}).algorithm, 6)
            for name in ("frame-region", "adaspa")
        )
        for step in range(6):
            assert ours.keeps_lse(step) == theirs.keeps_lse(step)
            for last in (None, 1, 3):
                call = Call(0, step, "cond", 0, layout)
                assert ours.decide(call, last) == theirs.decide(call, last)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("method", METHODS)
def test_text_is_kept_and_no_row_is_empty(method: str, layout: TokenLayout, sparsity: float) -> None:
    found = find(policy(method, sparsity), layout)
    kept = found.mask.to_bool()
    assert kept.shape == (HEADS, layout.blocks(BLOCK), layout.blocks(BLOCK))
    text = layout.text_blocks(BLOCK)
    assert kept[:, text.start : text.stop].all()
    assert kept[:, :, text.start : text.stop].all()
    assert kept.any(-1).all()
    if sparsity == 0:
        assert kept.all()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("method", METHODS)
def test_lists_ascend_and_say_what_the_counts_promise(method: str, layout: TokenLayout) -> None:
    mask = find(policy(method), layout).mask
    assert mask.counts.shape == (HEADS, layout.blocks(BLOCK))
    for count, kept in zip(mask.counts.flatten().tolist(), mask.indices.flatten(0, 1).tolist(), strict=True):
        if count < mask.key_blocks:
            assert kept[:count] == sorted(set(kept[:count]))
            assert not any(kept[count:])


@pytest.mark.parametrize("method", ["sparse-videogen", "frame-region", "adaspa"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("sparsity", [0.3, 0.7, 0.9])
def test_each_video_row_keeps_the_same_number_of_video_blocks(
    method: str, layout: TokenLayout, sparsity: float
) -> None:
    """k = max(1, round((1-γ) * Nv)): these methods achieve the density of AdaSpa to the block."""
    video = layout.video_blocks(BLOCK)
    kept = find(policy(method, sparsity), layout).mask.to_bool()
    rows = kept[:, video.start : video.stop, video.start : video.stop].sum(-1)
    assert (rows == max(1, round((1 - sparsity) * len(video)))).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_call_gives_the_same_mask(method: str) -> None:
    first, second = (find(policy(method), LAYOUTS["straddling, text first"]) for _ in range(2))
    assert torch.equal(first.mask.to_bool(), second.mask.to_bool())


@pytest.mark.parametrize("method", METHODS)
def test_the_recall_is_told_where_it_is_known(method: str) -> None:
    found = find(policy(method), LAYOUTS["text last"])
    if method in ESTIMATING:
        assert found.recall is None
    else:
        assert found.recall is not None
        assert found.recall.shape == (HEADS,)


@pytest.mark.parametrize("config", get_args(Algorithm), ids=lambda config: config.name)
def test_every_method_has_a_policy_and_a_preset_of_its_name(config: type[AlgorithmConfig]) -> None:
    algorithm = method_config(config.name, {}).algorithm
    assert type(algorithm) is config
    assert isinstance(make_policy(algorithm, 50), MaskPolicy)


def test_settings_become_a_policy() -> None:
    config: dict[str, Any] = {"sparsity": 0.7, "block_size": 32, "search_steps": (1, 3), "search_steps_for": None}
    assert make_policy(method_config("sparse-videogen", config).algorithm, 5) == SparseVideoGen(0.7, 1, 32)
    assert make_policy(method_config("minference", config).algorithm, 5) == MInference(0.7, 1, 32)
    region = method_config("frame-region", config | {"lse_cache": False}).algorithm
    assert make_policy(region, 5) == FrameRegion(0.7, (1, 3), 32, lse_cache=False)


def test_the_steps_at_which_masks_are_found() -> None:
    steps = {name: method_config(name, {}).algorithm.mask_steps(25) for name in (*METHODS, "full")}
    assert steps["adaspa"] == steps["frame-region"] == (5, 15)
    assert steps["minference"] == steps["sparse-videogen"] == tuple(range(5, 25))
    assert steps["full"] == ()


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operator made, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor) and not func.is_view:
                self.nbytes = max(self.nbytes, x.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("method", METHODS)
def test_a_search_at_720p_needs_little_memory_and_reads_nothing_back(method: str) -> None:
    """Tensors without data: whatever would read a value, and so wait for the device, fails."""
    layout, heads = TokenLayout(33, 45, 80, 256, "last"), 24
    chosen = make_policy(method_config(method, {"search_steps": (0,)}).algorithm, 50)
    call = Call(0, 0, "cond", 0, layout)
    with FakeTensorMode():
        q, k, v = (torch.empty(1, layout.tokens, heads, 128, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3))
        sums = torch.empty(heads, layout.blocks(64), layout.blocks(64))
        with Largest() as largest:
            if method in ESTIMATING:
                found = chosen.estimate(call, q, k, v, 128**-0.5)
                if found.order is not None:
                    found.order.undo(found.order.apply(q))
            else:
                found = chosen.search(call, sums)
            found.mask.density()
    # The inputs themselves are 731 MB (q, k, v) and 333 MB (W) large.
    assert largest.nbytes <= (q.nbytes if method in ESTIMATING else sums.nbytes)
    assert found.mask.nbytes <= heads * layout.blocks(64) * (2 * layout.blocks(64) + 4)

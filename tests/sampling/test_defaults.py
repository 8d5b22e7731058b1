"""A program's default dtype and device are its own: no method depends on them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import adaspa_cli
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.config.methods import SparseConfig, names_of
from adaspa_cli.maskfiles.compare import iou
from tests.pipelines import cogvideox, hunyuan_video, latents

SPARSE = {"block_size": 16, "search_steps": (1, 2), "search_steps_for": None, "sparsity": 0.6}
METHODS = ("full", "tomesd", "adaspa-no-lse-cache", "adaspa-plus", *names_of(SparseConfig))
CACHES = ("first-block", "magcache", "taylorseer")


@contextmanager
def defaults(dtype: torch.dtype, device: str = "cpu") -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def run(pipe: Any, method: str, around: Callable[[], Any], **settings: Any) -> tuple[Tensor, list[BlockMask]]:
    """The latents and the masks of a run whose attention calls are made within ``around``."""
    with adaspa_cli.apply(pipe, method, **settings) as handle:
        attend = type(handle.engine).__call__

        def elsewhere(self: Any, *args: Any) -> Tensor:
            with around():
                return attend(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(handle.engine), "__call__", elsewhere)
            video = latents(pipe)
        return video, [handle.masks()[place].mask for place in sorted(handle.masks())]


def same(one: tuple[Tensor, list[BlockMask]], other: tuple[Tensor, list[BlockMask]]) -> bool:
    masks = zip(one[1], other[1], strict=True)
    alike = all(torch.equal(a.counts, b.counts) and torch.equal(a.indices, b.indices) for a, b in masks)
    return alike and one[0].dtype == other[0].dtype and torch.equal(one[0], other[0])


@pytest.fixture(scope="module")
def pipe() -> Any:
    return hunyuan_video(num_layers=1, num_single_layers=1)


CASES = [("cpu", torch.float32), ("cpu", torch.bfloat16), ("reference", torch.float32)]


@pytest.mark.parametrize(("backend", "dtype"), CASES, ids=lambda value: str(value).removeprefix("torch."))
@pytest.mark.parametrize("method", METHODS)
def test_masks_and_videos_are_the_same(pipe: Any, method: str, backend: str, dtype: torch.dtype) -> None:
    settings: dict[str, Any] = SPARSE | {"attention_backend": "auto" if method == "tomesd" else backend}
    pipe.to(dtype)
    usual = run(pipe, method, lambda: defaults(torch.float32), **settings)
    for default in (torch.float64, torch.bfloat16):
        # With such a default device diffusers itself could not run; nothing of ours may stand on it.
        found = run(pipe, method, lambda default=default: defaults(default, "meta"), **settings)
        assert same(found, usual), default


@pytest.mark.parametrize("method", ["pab", "adacache", "magcache-calibration", "tomesd", "adaspa"])
def test_a_whole_run_is_the_same(pipe: Any, method: str) -> None:
    """What stands outside of attention too: caches, clocks, merging."""
    check_whole_run(pipe, method)


@pytest.mark.parametrize("cache", CACHES)
def test_a_whole_run_with_a_cache_is_the_same(pipe: Any, cache: str) -> None:
    check_whole_run(pipe, "adaspa", cache=cache, magcache_ratios=(1.0, 1.1, 0.9, 1.0))


def check_whole_run(pipe: Any, method: str, **settings: Any) -> None:
    pipe.to(torch.float32)
    settings = (SPARSE if method == "adaspa" else {}) | settings
    usual = run(pipe, method, lambda: defaults(torch.float32), **settings)
    for default in (torch.float64, torch.bfloat16):
        with defaults(default):
            found = run(pipe, method, lambda default=default: defaults(default), **settings)
        assert same(found, usual), default


def test_cogvideox_too() -> None:
    pipe = cogvideox()
    usual = run(pipe, "adaspa", lambda: defaults(torch.float32), **SPARSE)
    with defaults(torch.bfloat16):
        assert same(run(pipe, "adaspa", lambda: defaults(torch.bfloat16), **SPARSE), usual)


def test_figures_of_masks_are_float32() -> None:
    """Shares of counts: whole numbers divided give the default dtype."""
    kept = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    with defaults(torch.float64, "meta"):
        assert iou(kept, ~kept | kept).dtype == torch.float32
        assert BlockMask.from_bool(kept, (16, 16)).density().dtype == torch.float32

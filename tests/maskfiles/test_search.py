"""A search takes in the block sums of its videos one by one, and holds those of one layer."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adaspa_cli.attention import TokenLayout
from adaspa_cli.errors import RunError
from adaspa_cli.maskfiles import MaskFile
from adaspa_cli.maskfiles.parts import MaskParts
from adaspa_cli.maskfiles.search import MaskSearch
from adaspa_cli.masks import Call
from adaspa_cli.masks.methods.adaspa import AdaSpa
from adaspa_cli.masks.selection import select
from adaspa_cli.masks.text import video_part
from tests.mask_files import BLOCK, LAYOUT, block_sums, description

SIZE = (BLOCK, BLOCK)
STEPS = (2, 8)


class Live(TorchDispatchMode):
    """The most bytes that tensors made by operators had at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        made = [x for x in (result if isinstance(result, tuple | list) else [result]) if isinstance(x, Tensor)]
        self._made = [made for made in self._made if made() is not None] + [weakref.ref(x) for x in made]
        storages = [x.untyped_storage() for x in (made() for made in self._made) if x is not None]
        self.most = max(self.most, sum({x.data_ptr(): x.nbytes() for x in storages}.values()))
        return result


def searched(out: Path, videos: int, layers: int = 2, layouts: tuple[TokenLayout, ...] = (LAYOUT,)) -> MaskFile:
    """Search in the block sums of videos whose number is their seed."""
    facts = description(layers=layers, branches=("cond",))
    method = AdaSpa(0.75, STEPS, SIZE)
    search = MaskSearch(method, MaskParts(out, {}, resume=False), videos, lambda _layout: facts)
    for video in range(videos):
        layout = layouts[video % len(layouts)]
        for step in STEPS:
            for layer in range(layers):
                place = (layer, "cond", step)
                search.take_in(Call(layer, step, "cond", 0, layout), block_sums(place, layout, seed=video))
        search.video_done()
    search.finish(out)
    return MaskFile.open(out)


def peak(out: Path, videos: int, layers: int) -> int:
    with Live() as live:
        searched(out, videos, layers)
    return live.most


def test_memory_does_not_grow_with_layers_or_videos(tmp_path: Path) -> None:
    few = peak(tmp_path / "few.safetensors", videos=2, layers=2)
    assert few > 0
    assert peak(tmp_path / "layers.safetensors", videos=2, layers=7) == few
    assert peak(tmp_path / "videos.safetensors", videos=5, layers=2) == few


def test_the_masks_are_those_of_the_mean_whose_text_may_differ(tmp_path: Path) -> None:
    layouts = (LAYOUT, TokenLayout(LAYOUT.frames, LAYOUT.height, LAYOUT.width, 30, "last"))
    file = searched(tmp_path / "masks.safetensors", videos=2, layouts=layouts)
    for place in file.description.places():
        sums = [block_sums(place, layout, seed=video) for video, layout in enumerate(layouts)]
        mean = (video_part(sums[0], layouts[0], SIZE) + video_part(sums[1], layouts[1], SIZE)) / 2
        text = sum(x.sum((-1, -2)) for x in sums) / 2 - mean.sum((-1, -2))
        whole = torch.zeros_like(sums[0])
        video_part(whole, LAYOUT, SIZE).copy_(mean)
        whole[:, -1, -1] = text
        expected = select(whole, LAYOUT, SIZE, 0.75, head_adaptive=True)
        assert torch.equal(file.video_mask(place), video_part(expected.mask.to_bool(), LAYOUT, SIZE))


def test_a_text_that_moves_the_video_s_blocks_is_refused(tmp_path: Path) -> None:
    wider = TokenLayout(LAYOUT.frames, LAYOUT.height, LAYOUT.width + 1, 5, "last")
    with pytest.raises(RunError, match="do not leave the same blocks to the video"):
        searched(tmp_path / "masks.safetensors", videos=2, layouts=(LAYOUT, wider))


def test_weights_that_are_no_numbers_have_no_mask(tmp_path: Path) -> None:
    parts = MaskParts(tmp_path / "masks.safetensors", {}, resume=False)
    search = MaskSearch(AdaSpa(0.75, STEPS, SIZE), parts, 1, lambda _layout: description())
    sums = block_sums((0, "cond", 2)).fill_(torch.nan)
    with pytest.raises(RunError, match="layer 0 are not finite"):
        search.take_in(Call(0, 2, "cond", 0, LAYOUT), sums)
    with pytest.raises(RunError, match="no attention call was searched"):
        search.video_done()
    with pytest.raises(RunError, match="the search holds no video"):
        search.finish(tmp_path / "masks.safetensors")
    assert not (tmp_path / "masks.safetensors").exists()

"""One mask file, several processes: sums of shares are joined by the last, to the masks of one process."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adaspa_cli.config import resolve
from adaspa_cli.config.search_masks import SearchOptions
from adaspa_cli.errors import ConfigError, OutputError
from adaspa_cli.jobs import search_masks as job
from adaspa_cli.jobs.search_masks import search_masks, search_share
from adaspa_cli.jobs.shard import Shard
from adaspa_cli.maskfiles import MaskFile
from adaspa_cli.maskfiles.parts import MaskParts
from tests.pipelines import Listener, small_run
from tests.processes import at_once

PROMPTS = ["a red circle moves left", "two red squares move slowly to the right"]


def share(folder: Path, out: Path, shard: Shard | None, **changed: Any) -> Callable[[], MaskFile | None]:
    """A process with a share of four videos."""
    size = {"height": 64, "width": 96, "frames": 9, "seed": [0, 1]}
    resolved = resolve(small_run(folder, out.parent / "videos", **size | changed))
    options = SearchOptions(out, keep_sums=True)
    return lambda: search_share(resolved, options, PROMPTS, Listener(), shard)


@pytest.fixture(scope="module")
def alone(hunyuan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> MaskFile:
    """The file of one process."""
    found = share(hunyuan_folder, tmp_path_factory.mktemp("alone") / "masks.safetensors", None)()
    assert found is not None
    return found


def same(found: MaskFile, alone: MaskFile) -> None:
    """Check that a file is that of one process but for rounding."""
    assert found.description.settings == alone.description.settings
    assert found.description.layout == alone.description.layout
    assert list(found.verify()) == list(alone.verify())
    for place in alone.description.places():
        for ours, theirs in zip(found.sums(place), alone.sums(place), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-4)
        agree = found.video_mask(place) == alone.video_mask(place)
        assert agree.float().mean() > 0.995


@pytest.mark.parametrize("of", [2, 3])
def test_processes_share_a_search(hunyuan_folder: Path, tmp_path: Path, alone: MaskFile, of: int) -> None:
    out = tmp_path / "masks.safetensors"
    assert at_once(*[share(hunyuan_folder, out, Shard(number, of)) for number in range(1, of + 1)]) == [0] * of
    same(MaskFile.open(out), alone)
    assert list(tmp_path.iterdir()) == [out]


def test_the_file_does_not_depend_on_which_share_ends_last(hunyuan_folder: Path, tmp_path: Path) -> None:
    contents = []
    for name, order in (("a", (1, 2)), ("b", (2, 1))):
        out = tmp_path / name / "masks.safetensors"
        first, last = (share(hunyuan_folder, out, Shard(number, 2))() for number in order)
        assert first is None
        assert last is not None
        contents.append(out.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("where", ["add", "write_mask"])
def test_a_killed_share_goes_on(
    hunyuan_folder: Path, tmp_path: Path, alone: MaskFile, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """While it adds up its second video, or while it joins the shares."""
    out = tmp_path / "masks.safetensors"
    assert share(hunyuan_folder, out, Shard(1, 2))() is None
    real, calls = getattr(MaskParts, where), iter(range(99))

    def killed(*given: Any) -> None:
        if next(calls) == (11 if where == "add" else 3):
            os.kill(os.getpid(), signal.SIGKILL)
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(MaskParts, where, killed)
        assert at_once(share(hunyuan_folder, out, Shard(2, 2))) == [-signal.SIGKILL]
    assert not out.exists()
    found = share(hunyuan_folder, out, Shard(2, 2))()
    assert found is not None
    same(found, alone)
    assert list(tmp_path.iterdir()) == [out]


def test_what_does_not_fit_together_is_refused(hunyuan_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.safetensors"
    for shard in (Shard(5, 5), Shard(1, 5)):  # whose videos no process would join with those of a share without any
        with pytest.raises(ConfigError, match=f"--shard {shard}: the search has fewer videos"):
            share(hunyuan_folder, out, shard)()
    assert not list(tmp_path.iterdir())
    share(hunyuan_folder, out, Shard(1, 2))()
    with pytest.raises(OutputError, match="not shared by as many processes: 1-of-2 is there"):
        share(hunyuan_folder, out, Shard(1, 3))()
    with pytest.raises(OutputError, match=r"had other settings: sparsity 0.5 then, 0.6 now"):
        share(hunyuan_folder, out, Shard(1, 2), sparsity=0.6)()
    with pytest.raises(OutputError, match="an unfinished search is in") as told:
        share(hunyuan_folder, out, None)()
    assert "continue with --shard" in str(told.value.hint)
    held = job._claim(out, ".2-of-2")
    with held, pytest.raises(OutputError, match="another process is searching"):
        share(hunyuan_folder, out, Shard(2, 2))()


def test_a_finished_file_is_left_as_it_is(hunyuan_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.safetensors"
    settings = resolve(small_run(hunyuan_folder, tmp_path, height=64, width=96, frames=9, seed=[0, 1]))
    search_masks(settings, SearchOptions(out, keep_sums=True), PROMPTS, Listener())
    before = out.read_bytes()
    assert share(hunyuan_folder, out, Shard(2, 2))() is not None
    assert out.read_bytes() == before

"""Several processes and one folder: nothing lost, nothing twice where work is shared, nobody held up by the dead."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import pytest

from adaspa_cli.config import resolve
from adaspa_cli.config.search_masks import SearchOptions
from adaspa_cli.errors import OutputError, RunError
from adaspa_cli.files.claims import take
from adaspa_cli.jobs import write
from adaspa_cli.jobs.search_masks import search_masks
from tests.pipelines import Listener, make_reports, small_run
from tests.processes import at_once


def run(folder: Path, out: Path, log: Path | None = None, **flags: Any) -> Callable[[], object]:
    """A process that makes videos, and logs each that it begins."""

    class Log(Listener):
        def video(self, _number: int, prompt: str, seed: int) -> None:
            if log is not None:
                with log.open("a") as file:
                    file.write(f"{prompt} {seed}\n")

    return lambda: list(make_reports(resolve(small_run(folder, out, **flags)), Log()))


class Fail(Listener):
    def step_done(self, _step: int) -> None:
        raise RunError("stop")


def stems(out: Path, ending: str) -> list[str]:
    return sorted(path.name.removesuffix(ending) for path in out.glob(f"*{ending}"))


def test_two_processes_with_the_same_prompt_and_seed_both_keep_their_video(
    hunyuan_folder: Path, tmp_path: Path
) -> None:
    same = run(hunyuan_folder, tmp_path, prompt=["a circle"], seed=[1, 2])
    assert at_once(same, same) == [0, 0]
    expected = sorted(f"a-circle-seed{seed}{number}" for seed in (1, 2) for number in ("", "-2"))
    assert stems(tmp_path, ".mp4") == stems(tmp_path, ".report.json") == expected
    for path in tmp_path.glob("*.report.json"):
        assert json.loads(path.read_text())["video"]["file"] == path.name.replace(".report.json", ".mp4")
    assert not list(tmp_path.glob(".*"))


def test_processes_that_resume_share_the_work(hunyuan_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    shared = run(hunyuan_folder, tmp_path / "out", log, prompt=["a circle", "A circle!"], seed=[1, 2, 3], resume=True)
    assert at_once(shared, shared, shared) == [0, 0, 0]
    made = log.read_text().splitlines()
    assert sorted(made) == sorted(f"{prompt} {seed}" for prompt in ("a circle", "A circle!") for seed in (1, 2, 3))
    assert len(stems(tmp_path / "out", ".mp4")) == len(stems(tmp_path / "out", ".report.json")) == 6


def killed_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the process be killed when it comes to a function of the module that writes."""
    monkeypatch.setattr(write, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.parametrize("at", ["write_lossless", "write_json"])
def test_what_a_killed_process_left_is_replaced_by_resume(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    flags = {"prompt": ["a circle"], "lossless": True}
    with monkeypatch.context() as patch:
        killed_at(patch, at)
        assert at_once(run(hunyuan_folder, tmp_path, **flags)) == [-signal.SIGKILL]
    assert stems(tmp_path, ".mp4") == ["a-circle-seed0"]
    assert not list(tmp_path.glob("*.report.json"))
    (tmp_path / "a-circle-seed0.mp4").write_bytes(b"an orphan")
    with pytest.raises(RunError, match="stop"):  # an attempt that fails leaves the orphan and what tells of it
        list(make_reports(resolve(small_run(hunyuan_folder, tmp_path, **flags, resume=True)), Fail()))
    assert (tmp_path / "a-circle-seed0.mp4").read_bytes() == b"an orphan"
    run(hunyuan_folder, tmp_path, **flags, resume=True)()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"a-circle-seed0{ending}" for ending in (".mp4", ".lossless.mkv", ".report.json", ".report.html")
    }
    assert len(imageio.mimread(tmp_path / "a-circle-seed0.mp4")) == 5


def test_a_killed_process_holds_nobody_up(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_at(patch, "write_video")
        assert at_once(run(hunyuan_folder, tmp_path, prompt=["a circle"])) == [-signal.SIGKILL]
    run(hunyuan_folder, tmp_path, prompt=["a circle"])()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"a-circle-seed0{ending}" for ending in (".mp4", ".report.json", ".report.html")
    }


def test_an_orphan_of_unknown_origin_is_left_alone(hunyuan_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a-circle-seed0.mp4").write_bytes(b"of another program")
    run(hunyuan_folder, tmp_path, prompt=["a circle"], resume=True)()
    assert (tmp_path / "a-circle-seed0.mp4").read_bytes() == b"of another program"
    assert stems(tmp_path, ".report.json") == ["a-circle-seed0-2"]


def test_a_mask_file_is_searched_by_one_process_alone(hunyuan_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.safetensors"
    resolved = resolve(small_run(hunyuan_folder, tmp_path / "videos"))
    options = SearchOptions(out)
    other = take(tmp_path / ".masks.safetensors.claim")
    assert other is not None
    with other, pytest.raises(OutputError, match="another process is searching"):
        search_masks(resolved, options, ["a circle"], Listener())
    assert list(tmp_path.iterdir()) == []
    search_masks(resolved, options, ["a circle"], Listener())
    assert list(tmp_path.iterdir()) == [out]

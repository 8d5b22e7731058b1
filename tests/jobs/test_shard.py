"""Shares of one run: every video in one of them, under the name that it has in the whole run."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adaspa_cli.config import resolve
from adaspa_cli.errors import BackendError, ConfigError
from adaspa_cli.jobs import write
from adaspa_cli.jobs.generate import generate
from adaspa_cli.jobs.shard import Shard, parse_shard, take_gpu
from tests.pipelines import Listener, make_reports, small_run
from tests.processes import at_once

PROMPTS = ["a circle", "A circle!", "a square"]  # the first two want the same name
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SLURM = {"SLURM_PROCID": "2", "SLURM_NTASKS": "3", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("2/4", {}, Shard(2, 4)),
        ("2/4", TORCHRUN, Shard(2, 4)),
        ("auto", TORCHRUN, Shard(6, 8, 1)),
        ("auto", SLURM, Shard(3, 3, 0)),
        ("auto", SLURM | TORCHRUN, Shard(6, 8, 1)),
        ("auto", {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, Shard(1, 1)),
    ],
)
def test_a_share_is_given_or_read_where_that_is_asked_for(
    text: str, environment: dict[str, str], expected: Shard
) -> None:
    assert parse_shard(text, environment) == expected


@pytest.mark.parametrize("text", ["0/2", "3/2", "-1/2", "1", "1/2/3", "1/", "", "a/b", "1 /2"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--shard takes I/N"):
        parse_shard(text, TORCHRUN)


@pytest.mark.parametrize("environment", [{}, {"RANK": "1"}, {"SLURM_JOB_ID": "7"}])
def test_an_environment_of_one_process_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="neither RANK and WORLD_SIZE nor SLURM_PROCID and SLURM_NTASKS"):
        parse_shard("auto", environment)


@pytest.mark.parametrize("of", [1, 2, 3, 5, 8])
def test_all_shares_are_the_whole(of: int) -> None:
    shares = [Shard(number, of).take(range(5)) for number in range(1, of + 1)]
    assert sorted(item for share in shares for item in share) == list(range(5))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("visible", "local", "device", "expected"),
    [
        (None, 1, "auto", "1"),
        ("4,5", 1, "cuda", "5"),
        ("GPU-a, GPU-b", 1, "auto", "GPU-b"),
        ("4,5", 1, "cuda:0", "4,5"),
        ("4,5", 1, "cpu", "4,5"),
        ("4,5", None, "auto", "4,5"),
        ("4", 3, "auto", "4"),  # the launcher gave it one
    ],
)
def test_a_process_sees_the_gpu_of_its_number(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, local: int | None, device: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len((visible or "0,1").split(",")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    take_gpu(Shard(1, 8, local), device)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BackendError, match="process 3 of its machine, which has 2 GPUs"):
        take_gpu(Shard(3, 4, 2), "auto")


def process(folder: Path, out: Path, shard: Shard | None, log: Path | None = None) -> Callable[[], object]:
    """A process with a share, which logs each video that it begins."""

    class Log(Listener):
        def video(self, _number: int, prompt: str, seed: int) -> None:
            if log is not None:
                with log.open("a") as file:
                    file.write(f"{prompt} {seed}\n")

    settings = small_run(folder, out, prompt=PROMPTS, seed=[1, 2])
    return lambda: list(generate(resolve(settings), Log(), shard=shard))


def videos(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.mp4")}


@pytest.fixture(scope="module")
def whole(hunyuan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The videos of one process, by name."""
    out = tmp_path_factory.mktemp("whole")
    process(hunyuan_folder, out, None)()
    return videos(out)


def test_shares_make_what_one_process_makes(hunyuan_folder: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    assert at_once(*[process(hunyuan_folder, out, Shard(number, 4), log) for number in (1, 2, 3, 4)]) == [0] * 4
    assert videos(out) == whole
    assert len(log.read_text().splitlines()) == len(whole) == 6
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_names_do_not_depend_on_which_share_is_first(
    hunyuan_folder: Path, tmp_path: Path, whole: dict[str, bytes], order: tuple[int, ...]
) -> None:
    for number in order:
        process(hunyuan_folder, tmp_path, Shard(number, 3))()
    assert videos(tmp_path) == whole


def test_another_number_of_processes_goes_on(
    hunyuan_folder: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    with monkeypatch.context() as patch:  # the first share dies in its first video, before its report
        patch.setattr(write, "write_json", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        assert at_once(process(hunyuan_folder, out, Shard(1, 3))) == [-signal.SIGKILL]
    process(hunyuan_folder, out, Shard(2, 3))()
    process(hunyuan_folder, out, Shard(1, 2), log)()
    process(hunyuan_folder, out, Shard(2, 2), log)()
    assert videos(out) == whole
    assert len(log.read_text().splitlines()) == 6 - 2


def test_resume_without_a_share_sums_up(hunyuan_folder: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        process(hunyuan_folder, tmp_path, Shard(number, 2))()
    listener = Listener()
    settings: dict[str, Any] = small_run(hunyuan_folder, tmp_path, prompt=PROMPTS, seed=[1, 2], resume=True)
    reports = make_reports(resolve(settings), listener)
    assert [(report["prompt"], report["seed"]) for report in reports] == [(p, s) for p in PROMPTS for s in (1, 2)]
    assert "loading" not in listener.names()
    files = {json.loads(path.read_text())["video"]["file"] for path in tmp_path.glob("*.report.json")}
    assert files == videos(tmp_path).keys()

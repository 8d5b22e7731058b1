"""``adaspa generate --gpus`` as its users run it: several processes on the CPU, one voice, one end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines import small_run

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _arguments(folder: Path, out: Path, **flags: Any) -> list[str]:
    run = small_run(folder, out, gpus=2, **flags)
    settings = {"search_steps": "1,3", "prompt": run["prompt"][0]} | {
        key: value for key, value in run.items() if key not in ("search_steps", "prompt")
    }
    given = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", "adaspa_cli", "generate", *given]


def _begin(command: list[str]) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, stdout=pipe, stderr=pipe, start_new_session=True)


def _workers(launcher: int) -> list[int]:
    """Processes that the launcher started, in the order of their ranks."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    found = {}
    for child in map(int, children):
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [entry for entry in environment if entry.startswith(b"RANK=")]
        if ranks:
            found[int(ranks[0][5:])] = child
    return [found[rank] for rank in sorted(found)]


@pytest.fixture
def running(hunyuan_folder: Path, tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
    """A run that would take minutes, in the middle of its steps."""
    process = _begin(_arguments(hunyuan_folder, tmp_path / "out", steps=5000))
    assert process.stderr is not None
    for line in process.stderr:
        if "(seed 0)" in line:
            break
    time.sleep(0.5)
    yield process
    process.kill()
    process.wait()


def _end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    begin = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - begin < 30
    return process.returncode, said


def test_a_run_ends_in_one_video_and_one_report(hunyuan_folder: Path, tmp_path: Path) -> None:
    process = _begin(_arguments(hunyuan_folder, tmp_path / "out"))
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert said.count("attention backend") == 1
    (report,) = (tmp_path / "out").glob("*.report.json")
    content = json.loads(report.read_text())
    assert content["parallel"]["processes"] == 2
    assert all(len(search["recall"]) == 2 for search in content["searches"])
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 1
    assert "made by 2 processes" in out
    again = _begin([*_arguments(hunyuan_folder, tmp_path / "out"), "--resume"])
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert said.count("complete already") == 1


def test_a_killed_process_ends_all(running: "subprocess.Popen[str]", tmp_path: Path) -> None:
    os.kill(_workers(running.pid)[1], signal.SIGKILL)
    code, said = _end(running)
    assert code == 1, said
    assert [line for line in said.splitlines() if "error" in line] == [
        "error: process 2 of 2 was killed (SIGKILL)",
    ], said
    assert not [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]


def test_ctrl_c_ends_all(running: "subprocess.Popen[str]") -> None:
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    code, said = _end(running)
    assert code == 130, said
    assert said.count("interrupted") == 1, said
    assert "Traceback" not in said

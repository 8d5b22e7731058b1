"""``adaspa generate --gpus`` as its users run it: several processes on the CPU, one voice, one end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adaspa_cli import app
from adaspa_cli.errors import RunError
from adaspa_cli.maskfiles import MaskFile
from adaspa_cli.sampling import run
from tests.pipelines import small_run
from tests.processes import at_once

# --- by --gpus, which starts torchrun's launcher

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


PROGRAM = [sys.executable, "-m", "adaspa_cli"]
NOT_OF_SEARCHES = ("--fps", "--dtype", "--attention-backend", "--block-size")


def _arguments(folder: Path, out: Path, **flags: Any) -> list[str]:
    settings = small_run(folder, out, **{"gpus": 2} | flags) | {"search_steps": "1,3", "prompt": "a red circle"}
    given = [
        f"--{key.replace('_', '-')}" if value is True else f"--{key.replace('_', '-')}={value}"
        for key, value in settings.items()
    ]
    return [*PROGRAM, "generate", *given]


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


# --- as torchrun starts them


def _ranks(arguments: list[str], folder: Path, spoil: Callable[[], None] = lambda: None) -> tuple[list[int], list[str]]:
    """Run a command in two forks, as torchrun would; ``spoil`` is called in the second. Exit codes, and stderr."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    said = [folder / f"said-{rank}" for rank in range(2)]

    def rank(number: int) -> None:
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        sys.stderr = said[number].open("w", buffering=1)
        sys.argv = arguments[2:]
        if number:
            spoil()
        code = app.main()
        sys.stderr.flush()
        os._exit(code)

    codes = at_once(partial(rank, 0), partial(rank, 1))
    return codes, [path.read_text() for path in said]


def test_what_is_complete_is_said_once(hunyuan_folder: Path, tmp_path: Path) -> None:
    arguments = _arguments(hunyuan_folder, tmp_path / "out", resume=True)
    assert _ranks(arguments, tmp_path)[0] == [0, 0]
    (report,) = (tmp_path / "out").glob("*.report.json")
    before = report.stat().st_mtime_ns
    codes, (leader, other) = _ranks(arguments, tmp_path)
    assert codes == [0, 0]
    assert report.stat().st_mtime_ns == before
    assert "already complete" in leader
    assert other == ""


def test_an_error_in_one_process_is_said_once(hunyuan_folder: Path, tmp_path: Path) -> None:
    def spoil() -> None:
        def wrong(*_: Any) -> None:
            raise RunError("values that are not finite")

        run.check_finite = wrong  # type: ignore[assignment]

    codes, (leader, other) = _ranks(_arguments(hunyuan_folder, tmp_path / "out"), tmp_path, spoil)
    assert codes == [1, 1]
    assert other == "error: values that are not finite\n"
    assert "error" not in leader
    assert not [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]


def test_masks_are_searched_together(hunyuan_folder: Path, tmp_path: Path) -> None:
    arguments = _arguments(hunyuan_folder, tmp_path)[4:]
    (given,) = [place for place, argument in enumerate(arguments) if argument.startswith("--out=")]
    arguments[given] = f"--out={tmp_path / 'masks.safetensors'}"
    arguments = [argument for argument in arguments if not argument.startswith(NOT_OF_SEARCHES)]
    codes, (leader, other) = _ranks([*PROGRAM, "search-masks", *arguments, "--set=block_size=16"], tmp_path)
    assert codes == [0, 0], leader + other
    assert leader.count("attention backend") == 1
    assert other == ""
    assert list(MaskFile.open(tmp_path / "masks.safetensors").verify())


def test_a_search_with_its_branches_apart_is_refused(
    hunyuan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"--model={hunyuan_folder}", "--prompt=a red circle", f"--out={tmp_path / 'masks.safetensors'}"]
    monkeypatch.setattr(sys, "argv", ["adaspa", "search-masks", *given, "--gpus=2", "--set=cfg_parallel=true"])
    assert app.main() == 2
    assert "cfg_parallel can't be combined with search-masks" in capsys.readouterr().err


def test_what_does_not_go_together_is_refused_by_name(
    hunyuan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**flags: Any) -> str:
        monkeypatch.setattr(sys, "argv", _arguments(hunyuan_folder, tmp_path / "out", **flags)[2:])
        assert app.main() == 2
        return capsys.readouterr().err

    assert "offload 'model' can't be combined with several GPUs" in refused(offload="model", device="cuda")
    assert "method 'diffusers' can't be combined" in refused(method="diffusers", attention_backend="auto")
    assert "merge 'tomesd' can't be combined" in refused(method="tomesd", attention_backend="auto")
    assert "3 processes cannot share 2 heads" in refused(gpus=3)
    assert "'cuda:1' is one GPU" in refused(device="cuda:1")
    assert "needs two guidance branches, and this run has one" in refused(cfg_parallel=True)
    assert "a process with --shard makes each video" in refused(shard="1/2")
    assert not (tmp_path / "out").exists()

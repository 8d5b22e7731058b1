"""Videos by workers of a local Ray: the same files as those of one process, also where a worker is killed."""

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adaspa_cli.config import resolve
from adaspa_cli.errors import AdaspaError, BackendError, ConfigError, RunError, UsageError
from adaspa_cli.files.claims import take
from adaspa_cli.jobs.places import claim_path
from tests.pipelines import Listener, make_reports, small_run

pytest.importorskip("ray", reason="needs Ray: pip install 'adaspa[ray]'")

PROMPTS = ["a circle", "A circle!", "a square"]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """A local Ray of two cores, with sockets under a short path."""
    import ray

    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    settings = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", folder)  # where Ray keeps the token of its clusters
        ray.init(log_to_driver=False, logging_level="error", _temp_dir=folder, **settings)
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def run(folder: Path, out: Path, listener: Any = None, workers: int | None = 2, **flags: Any) -> list[Any]:
    from adaspa_cli.jobs.ray_run import Cluster, generate_on_ray

    settings = small_run(folder, out, prompt=PROMPTS, seed=[1, 2], lossless=True) | flags
    resolved = resolve(settings)
    return list(generate_on_ray(resolved, listener or Listener(), settings["prompt"], Cluster(workers=workers)))


def videos(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.mp4")}


@pytest.fixture(scope="module")
def whole(hunyuan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The videos of one process."""
    out = tmp_path_factory.mktemp("whole")
    make_reports(resolve(small_run(hunyuan_folder, out, prompt=PROMPTS, seed=[1, 2], lossless=True)), Listener())
    return videos(out)


class Kill(Listener):
    """Kills the process of a worker in the middle of its second video."""

    def __init__(self) -> None:
        super().__init__()
        self._done = 0

    def step_done(self, step: int) -> None:
        if step == 0:
            self._done += 1
            if self._done == 1:
                os.kill(workers()[0], signal.SIGKILL)


def workers() -> list[int]:
    """Processes of the workers that are alive."""
    import psutil

    mine = psutil.Process().children(recursive=True)
    return [process.pid for process in mine if "ray::Worker" in " ".join(process.cmdline())]


def test_a_killed_worker_loses_nothing(hunyuan_folder: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    listener = Kill()
    made = run(hunyuan_folder, tmp_path, listener)
    assert videos(tmp_path) == whole
    assert sorted(one.place.name for one in made) == sorted(whole)
    assert listener.names().count("lost") == 1
    assert ("workers", 2, "CPU") in listener.heard
    endings = (".mp4", ".lossless.mkv", ".report.json", ".report.html")
    expected = {name.replace(".mp4", ending) for name in whole for ending in endings}
    assert {path.name for path in tmp_path.iterdir()} == expected
    again = Listener()
    assert len(run(hunyuan_folder, tmp_path, again, resume=True)) == 6
    assert set(again.names()) == {"skipped"}


def test_what_another_process_makes_is_left_to_it(hunyuan_folder: Path, tmp_path: Path) -> None:
    from adaspa_cli.jobs.plan import plan

    settings = small_run(hunyuan_folder, tmp_path, prompt=["a circle"], resume=True)
    (job,) = plan(resolve(settings), settings["prompt"])
    held = take(claim_path(job.place), job.fingerprint)
    assert held is not None
    listener = Listener()
    with held:
        one = {"prompt": ["a circle"], "seed": [0], "lossless": False, "resume": True}
        assert run(hunyuan_folder, tmp_path, listener, **one) == []
    assert ("elsewhere", job.place) in listener.heard


def test_an_error_of_the_settings_comes_as_it_is(hunyuan_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="height must be a multiple of 16, got 40"):
        run(hunyuan_folder, tmp_path, workers=1, height=40)
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_kills_every_worker_ends_the_run(hunyuan_folder: Path, tmp_path: Path) -> None:
    class KillAll(Listener):
        def phase(self, _phase: str) -> None:
            for pid in workers():
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(RunError, match="3 workers died while they made a-circle-seed1"):
        run(hunyuan_folder, tmp_path, KillAll(), prompt=["a circle"], seed=[1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("workers", "flags", "error", "message"),
    [
        (3, {}, BackendError, "--ray-workers 3: the Ray cluster has 2 CPUs"),
        (None, {"device": "cuda"}, BackendError, "the Ray cluster has no GPU"),
    ],
)
def test_what_the_cluster_cannot_do_is_refused(
    hunyuan_folder: Path, tmp_path: Path, workers: int | None, flags: Any, error: type[AdaspaError], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(hunyuan_folder, tmp_path, workers=workers, **flags)
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_is_not_there_is_refused_at_once() -> None:
    from adaspa_cli.jobs.ray_run import _check_reachable

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            with pytest.raises(UsageError, match=f"cannot connect to Ray at '{address}'"):
                _check_reachable(address)

"""How videos are given to workers, and what a worker's death costs: with a stand-in for Ray, whose workers are here.

``test_ray.py`` has real workers, where Ray is installed.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adaspa_cli.config import resolve
from adaspa_cli.errors import BackendError, ConfigError, RunError
from adaspa_cli.jobs.ray_run import Cluster, generate_on_ray
from tests.pipelines import Listener, make_reports, small_run

PROMPTS = ["a circle", "A circle!", "a square"]
Dies = Callable[[int, int], bool]


class _RayError(Exception):
    """A worker is gone."""


class _RayTaskError(_RayError):
    """A worker could not say what went wrong."""


class StandIn:
    """Of Ray what the driver uses. A call is made when it is asked for, unless its worker dies of it.

    Attributes:
        started: workers so far.
        ended: those that were told to end.
    """

    exceptions = SimpleNamespace(RayError=_RayError, RayTaskError=_RayTaskError)

    def __init__(self, dies: Dies) -> None:
        """``dies`` is asked with the numbers of a worker and of a call, from 0."""
        self._dies, self.started, self._calls = dies, 0, 0
        self.ended: list[Any] = []

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **_options: Any) -> Callable[[type], Any]:
        return lambda kind: SimpleNamespace(remote=lambda *given: self._worker(kind, *given))

    def _worker(self, kind: type, *given: Any) -> Any:
        number, worker = self.started, kind(*given)
        self.started += 1

        def call(*told: Any) -> Callable[[], Any]:
            self._calls += 1
            dies = self._dies(number, self._calls - 1)

            def result() -> Any:
                if dies:
                    raise _RayError
                return worker.make(*told)

            return result

        return SimpleNamespace(make=SimpleNamespace(remote=call))

    def wait(self, running: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:  # noqa: ARG002
        return running[-1:], running[:-1]  # the last to begin is the first to end

    def get(self, reference: Callable[[], Any]) -> Any:
        return reference()

    def kill(self, worker: Any) -> None:
        self.ended.append(worker)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Callable[[Dies], StandIn]:
    def stand_in(dies: Dies = lambda _worker, _call: False) -> StandIn:
        made = StandIn(dies)
        monkeypatch.setitem(sys.modules, "ray", made)
        return made

    return stand_in


def run(folder: Path, out: Path, listener: Any, workers: int = 2, **flags: Any) -> list[Any]:
    settings = small_run(folder, out, prompt=PROMPTS) | flags
    return list(generate_on_ray(resolve(settings), listener, settings["prompt"], Cluster(workers=workers)))


def test_a_video_whose_worker_dies_is_made_by_another_and_written_once(
    ray: Any, hunyuan_folder: Path, tmp_path: Path
) -> None:
    make_reports(resolve(small_run(hunyuan_folder, tmp_path / "alone", prompt=PROMPTS)), Listener())
    stand_in, listener = ray(lambda worker, _call: worker == 1), Listener()
    made = run(hunyuan_folder, tmp_path / "shared", listener)
    videos = [
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.mp4")} for name in ("alone", "shared")
    ]
    assert videos[0] == videos[1]
    assert sorted(one.place.name for one in made) == sorted(videos[0])
    assert listener.names().count("lost") == 1
    assert listener.names().count("video") == len(PROMPTS)
    assert stand_in.started == 3
    assert len(stand_in.ended) == 3  # the one that died, and two at the end
    assert not list((tmp_path / "shared").glob(".*"))


def test_a_long_prompt_is_named_once(ray: Any, hunyuan_folder: Path, tmp_path: Path) -> None:
    ray()
    listener, flags = Listener(), {"seed": (0, 1)}
    settings = small_run(hunyuan_folder, tmp_path, prompt=["a circle " * 200]) | flags
    list(generate_on_ray(resolve(settings), listener, settings["prompt"], Cluster(workers=1)))
    assert listener.names().count("note") == 1


def test_what_is_complete_needs_no_worker(ray: Any, hunyuan_folder: Path, tmp_path: Path) -> None:
    make_reports(resolve(small_run(hunyuan_folder, tmp_path, prompt=PROMPTS)), Listener())
    stand_in, listener = ray(), Listener()
    assert len(run(hunyuan_folder, tmp_path, listener, resume=True)) == len(PROMPTS)
    assert set(listener.names()) == {"skipped"}
    assert stand_in.started == 0


def test_a_video_that_kills_three_workers_ends_the_run(ray: Any, hunyuan_folder: Path, tmp_path: Path) -> None:
    stand_in = ray(lambda _worker, _call: True)
    with pytest.raises(RunError, match="3 workers died while they made a-circle-seed0"):
        run(hunyuan_folder, tmp_path, Listener(), workers=1, prompt=["a circle"])
    assert len(stand_in.ended) == stand_in.started == 3
    assert list(tmp_path.iterdir()) == []


def test_a_workers_error_comes_as_it_is(ray: Any, hunyuan_folder: Path, tmp_path: Path) -> None:
    stand_in = ray()
    with pytest.raises(ConfigError, match="height must be a multiple of 16, got 40"):
        run(hunyuan_folder, tmp_path, Listener(), height=40)
    assert len(stand_in.ended) == 2
    assert list(tmp_path.iterdir()) == []


def test_more_workers_than_the_cluster_has_cores_are_refused(ray: Any, hunyuan_folder: Path, tmp_path: Path) -> None:
    ray()
    with pytest.raises(BackendError, match="--ray-workers 3: the Ray cluster has 2 CPUs"):
        run(hunyuan_folder, tmp_path, Listener(), workers=3)

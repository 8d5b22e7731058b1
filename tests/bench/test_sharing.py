"""One bench, several processes: every run is made once, failures are tried once, the last one's tables are whole."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from adaspa_cli.bench import runner
from adaspa_cli.bench.plan import plan_bench
from adaspa_cli.bench.spec import BenchSpec
from adaspa_cli.jobs import write
from adaspa_cli.jobs.generate import claim
from tests.bench.benches import PROMPTS, make, small_bench
from tests.pipelines import Listener
from tests.processes import at_once


def process(spec: BenchSpec, out: Path, log: Path) -> Callable[[], object]:
    """A process that makes a bench, and logs each run that it begins."""

    class Log(Listener):
        def video(self, _number: int, what: str, seed: int) -> None:
            with log.open("a") as file:
                file.write(f"{what} {seed}\n")

    return lambda: make(spec, out, Log())


def test_processes_share_a_bench_and_make_nothing_twice(hunyuan_folder: Path, tmp_path: Path) -> None:
    rows = [{"method": "full"}, {"method": "adaspa"}, {"name": "odd", "method": "full", "height": 40}]
    spec, out, log = small_bench(tmp_path, hunyuan_folder, seeds=[0, 1], rows=rows), tmp_path / "out", tmp_path / "log"
    assert at_once(*[process(spec, out, log)] * 3) == [0, 0, 0]
    made = log.read_text().splitlines()
    names = ("full", "adaspa", "odd")  # a run that failed in one process is not tried in another
    assert sorted(made) == sorted(f"{row}: {prompt} {seed}" for row in names for prompt in PROMPTS for seed in (0, 1))
    bench = json.loads((out / "bench.json").read_text())
    assert [(len(row["runs"]), len(row["failures"])) for row in bench["rows"]] == [(4, 0), (4, 0), (0, 4)]
    assert bench["rows"][1]["quality"]["psnr"]["count"] == 4
    assert not list(out.rglob(".*"))


def test_what_a_killed_process_was_at_is_made_by_another(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out, log = small_bench(tmp_path, hunyuan_folder), tmp_path / "out", tmp_path / "log"
    with monkeypatch.context() as patch:
        patch.setattr(write, "write_json", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        assert at_once(process(spec, out, log)) == [-signal.SIGKILL]
    (out / "rows.partial7.csv").touch()
    bench = make(spec, out)
    assert [len(row["runs"]) for row in bench["rows"]] == [2, 2]
    assert not list(out.rglob("*-2.*"))
    assert not list(out.glob("*.partial*"))


def test_a_model_of_which_all_runs_are_made_elsewhere_is_not_loaded(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = small_bench(tmp_path, hunyuan_folder, prompts=PROMPTS[:1]), tmp_path / "out"
    planned = plan_bench(spec, out)
    claims = [claim(job, resume=True) for row in planned for job in row.jobs]
    monkeypatch.setattr(runner, "load_pipeline", lambda *_, **__: pytest.fail("the model was loaded"))
    assert runner.run_bench(planned, Listener()) == 2
    for claimed in claims:
        assert claimed is not None
        claimed.give_back()

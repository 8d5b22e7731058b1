"""The profile of steps as a whole, with a CPU's operators in place of a GPU's kernels, and its command."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

pytest.importorskip("triton", reason="triton is not installed")

from adaspa_cli.config import resolve
from adaspa_cli.errors import ConfigError, RunError
from adaspa_cli.hooks.timing import Span
from adaspa_cli.masks import CallPlan
from adaspa_cli.masks.plan import CACHED_SEARCH, DENSE, SPARSE
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.report.schema import Machine
from adaspa_cli.sampling.records import AttentionCall
from scripts.profile_steps import __main__ as program
from scripts.profile_steps import record, tables
from scripts.profile_steps.record import Profiled
from scripts.profile_steps.times import Kernel, Window, step_times
from tests.pipelines import small_run


def test_the_kind_of_a_step_is_what_its_calls_did() -> None:
    def call(step: int, action: CallPlan) -> AttentionCall:
        return AttentionCall(0, step, action, None, Span(0.0, 1.0))

    calls = [call(0, DENSE), call(0, DENSE), call(1, SPARSE), call(1, CACHED_SEARCH)]
    assert record.kinds_of_steps(calls, 3) == ["dense", "cached search + sparse", "no attention"]


def test_the_profiler_sees_the_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    record.check_profiler(torch.device("cpu"))
    monkeypatch.setattr(record, "profile", Recorded([event("aten::add", DeviceType.CPU)]))
    with pytest.raises(RunError, match=r"does not see the marks .*; it saw \['aten::add'\]"):
        record.check_profiler(torch.device("cpu"))


class Recorded:
    """A profiler of a GPU that records what it is told."""

    def __init__(self, events: list[SimpleNamespace]) -> None:
        self.activities: list[ProfilerActivity] = []
        self._events = events

    def __call__(self, *, activities: list[ProfilerActivity]) -> "Recorded":
        self.activities = activities
        return self

    def __enter__(self) -> "Recorded":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def events(self) -> list[SimpleNamespace]:
        return self._events


def event(name: str, device: DeviceType = DeviceType.CUDA, annotation: bool = False) -> SimpleNamespace:
    times = SimpleNamespace(start=1.0, end=2.5)
    return SimpleNamespace(name=name, device_type=device, time_range=times, is_user_annotation=annotation)


def test_on_a_gpu_its_own_timeline_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = "at::cuda::(anonymous namespace)::spin_kernel(long)"
    recorded = Recorded(
        [
            event(mark),
            event("cudaLaunchKernel", DeviceType.CPU),
            event("Context Sync"),
            event("a range", annotation=True),
            event("nvjet_a"),
        ]
    )
    called: list[str] = []
    monkeypatch.setattr(record, "profile", recorded)
    monkeypatch.setattr(torch.cuda, "device", lambda _device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _cycles: called.append("mark"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: called.append("wait"))
    gpu = torch.device("cuda", 1)
    assert record.record_kernels(gpu, lambda: called.append("run")) == [
        Kernel(mark, 1.0, 2.5),
        Kernel("nvjet_a", 1.0, 2.5),
    ]
    assert recorded.activities == [ProfilerActivity.CUDA]
    assert called == ["run", "wait"]
    record.check_profiler(gpu)
    assert called == ["run", "wait", "mark", "mark", "wait"]


@pytest.mark.parametrize("family", ["hunyuan", "cogvideox"])
def test_every_kind_of_step_is_profiled(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue(f"{family}_folder")
    flags = small_run(folder, tmp_path, steps=6, search_steps=(2, 4), random_weights=True, decode=False)
    resolved = resolve(flags | ({"frames": 9} if family == "cogvideox" else {}))
    found = program.profiles(resolved)
    assert [run.run for run in found] == ["diffusers as it comes", "adaspa"]
    chosen = {kind: number for run in found for kind, (number, _) in run.steps.items()}
    assert chosen == {"diffusers as it comes": 1, "dense": 1, "search": 2, "cached search": 4, "sparse": 5}
    for times in tables.steps_of(found).values():
        assert times.span > 0
        assert 0 <= times.gaps < times.span
        assert sum(times.work.values()) + times.gaps == pytest.approx(times.span + times.overlap)
        names = {kernel.name for kernel in times.kernels}
        assert "aten::linear" in names  # a transformer ran in it
        assert record.CPU_MARK not in names
    written = json.loads(json.dumps(program.profile_record(resolved, found, torch.device("cpu"), "unknown")))
    kinds = [step["kind"] for run in written["runs"] for step in run["steps"]]
    assert kinds == list(chosen)
    assert all(len(step["kernels"]) == tables.TOP for run in written["runs"] for step in run["steps"])
    shown = program.text(written, found)
    assert "random weights" in shown
    assert "peak memory, adaspa: " in shown
    assert "| diffusers as it comes | dense | search | cached search | sparse |" in shown


def test_the_pipeline_is_given_back_as_it_was(hunyuan_folder: Path, tmp_path: Path) -> None:
    flags = small_run(hunyuan_folder, tmp_path, steps=2, search_steps=(1,), random_weights=True, decode=False)
    resolved = resolve(flags)
    pipe = load_pipeline(resolved.config.model, decode=False)
    processors = list(pipe.transformer.attn_processors.values())
    record.profile_method(pipe, resolved, "a circle")
    record.profile_diffusers(pipe, resolved, "a circle")
    assert list(pipe.transformer.attn_processors.values()) == processors
    assert not {"step", "set_timesteps"} & pipe.scheduler.__dict__.keys()


def test_what_only_the_method_has_is_not_asked_of_diffusers(cogvideox_folder: Path, tmp_path: Path) -> None:
    flags = small_run(cogvideox_folder, tmp_path, steps=2, search_steps=(1,), random_weights=True, decode=False)
    resolved = resolve(flags | {"frames": 9, "share_cfg_masks": True})
    pipe = load_pipeline(resolved.config.model, decode=False)
    assert record.profile_diffusers(pipe, resolved, "a circle").run == "diffusers as it comes"


def test_a_lost_step_is_an_error(hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = small_run(hunyuan_folder, tmp_path, steps=2, search_steps=(1,), random_weights=True, decode=False)
    monkeypatch.setattr(record, "windows", lambda _kernels, _is_mark: [])
    resolved = resolve(flags)
    with pytest.raises(RunError, match="0 of 2 denoising steps"):
        record.profile_method(load_pipeline(resolved.config.model, decode=False), resolved, "a circle")


# --- the command


def run_settings(*given: str) -> dict[str, Any]:
    return program.settings(program.arguments(given)).flat()


def test_settings_of_a_profile() -> None:
    found = run_settings("--model", "hunyuan", "--layers", "6")
    assert found["random_weights"]
    assert (found["steps"], found["search_steps"], found["search_steps_for"]) == (6, [2, 4], None)
    assert (found["height"], found["width"], found["frames"], found["layers"]) == (720, 1280, 129, 6)
    found = run_settings(
        "--model", "cogvideox", "--set", "search_steps=[0, 3]", "--set", "sparsity=0.7", "--steps", "8"
    )
    assert (found["steps"], found["search_steps"], found["sparsity"]) == (8, [0, 3], 0.7)
    assert run_settings("--sparsity", "0.9", "--set", "sparsity=0.5")["sparsity"] == 0.9
    with pytest.raises(ConfigError, match="sparsty"):
        run_settings("--set", "sparsty=0.5")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--device", "cpu"], "needs a GPU"),
        (["--model", "nothing"], "nothing"),
        (["--steps", "3"], "search step 4 is beyond"),
        (["--set", "steps"], "KEY=VALUE"),
    ],
)
def test_what_cannot_be_done_is_one_line(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.startswith("profile_steps: ")
    assert err.count("\n") == 1


def test_a_place_that_cannot_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "choose_device", lambda _name: torch.device("cuda"))
    monkeypatch.setattr(program, "profiles", lambda *_args, **_options: pytest.fail("it began"))
    for place in (tmp_path, tmp_path / "missing" / "steps.json"):
        assert program.main(["--json", str(place)]) == 2
        assert str(place) in capsys.readouterr().err


def test_what_was_found_is_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sparse = step_times(Window(0, 10_000, [Kernel("flash_fwd_kernel", 0, 6000)]))
    run = Profiled("adaspa", {"sparse": (5, sparse)}, {"process_bytes": 1, "gpu_bytes": 36_000_000_000})
    asked: list[bool] = []

    def profiles(_resolved: object, *, diffusers: bool) -> list[Profiled]:
        asked.append(diffusers)
        return [run]

    monkeypatch.setattr(program, "choose_device", lambda _name: torch.device("cuda"))
    monkeypatch.setattr(program, "machine", lambda _device: Machine("cuda", "a CPU", 1, 1, "Linux x86_64", "a GPU"))
    monkeypatch.setattr(program, "profiles", profiles)
    assert program.main(["--layers", "6", "--no-diffusers", "--json", str(tmp_path / "steps.json")]) == 0
    assert asked == [False]
    out = capsys.readouterr().out
    for line in ("| attention | 6.0 (60.0%) |", "peak memory, adaspa: 36.0 GB (GPU)"):
        assert line in out.splitlines()
    assert "hunyuan, 6 layers, 720 x 1280 x 129, random weights, 6 of 60 layers" in out
    written = json.loads((tmp_path / "steps.json").read_text(encoding="utf-8"))
    assert (written["layers"], written["settings"]["steps"]) == (6, 6)
    (found,) = written["runs"][0]["steps"]
    assert (found["kind"], found["step"], found["milliseconds"], found["work"]["attention"]) == ("sparse", 5, 10, 6)
    assert found["kernels"] == [{"name": "flash_fwd_kernel", "kind": "attention", "launches": 1, "milliseconds": 6.0}]

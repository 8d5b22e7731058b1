"""A run: all prompts with all seeds, complete files or none, and a second start that goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adaspa_cli.config import resolve
from adaspa_cli.errors import BackendError, ConfigError, OutOfMemoryError, OutputError, RunError
from adaspa_cli.jobs.plan import plan
from tests.pipelines import PROMPT, Listener, hunyuan_video, make_reports, save, small_run


def make(folder: Path, out: Path, listener: Any = None, **flags: Any) -> list[dict[str, Any]]:
    return list(make_reports(resolve(small_run(folder, out, **flags)), listener or Listener()))


def files(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}


def read(path: Path) -> np.ndarray:
    return np.stack(imageio.mimread(path))


class InterruptAt(Listener):
    """Presses Ctrl-C in a step of a video."""

    def __init__(self, video: int, step: int) -> None:
        super().__init__()
        self._video, self._step, self._now = video, step, -1

    def video(self, number: int, _prompt: str, _seed: int) -> None:
        self._now = number

    def step_done(self, step: int) -> None:
        if (self._now, step) == (self._video, self._step):
            raise KeyboardInterrupt


def test_every_prompt_with_every_seed(hunyuan_folder: Path, tmp_path: Path) -> None:
    reports = make(hunyuan_folder, tmp_path, prompt=["One circle", "two circles"], seed=[1, 2])
    assert [(report["prompt"], report["seed"]) for report in reports] == [
        ("One circle", 1),
        ("One circle", 2),
        ("two circles", 1),
        ("two circles", 2),
    ]
    stems = {f"{slug}-seed{seed}" for slug in ("one-circle", "two-circles") for seed in (1, 2)}
    assert files(tmp_path) >= {f"{stem}.mp4" for stem in stems} | {f"{stem}.report.json" for stem in stems}
    assert not [name for name in files(tmp_path) if "partial" in name]
    for report in reports:
        assert json.loads((tmp_path / report["video"]["file"]).with_suffix(".report.json").read_text()) == report
        assert read(tmp_path / report["video"]["file"]).shape == (5, 32, 48, 3)


def test_cogvideox_runs_as_well(cogvideox_folder: Path, tmp_path: Path) -> None:
    (report,) = make(cogvideox_folder, tmp_path, frames=9)
    assert report["model"]["pipeline"] == "CogVideoXPipeline"
    assert {search["branch"] for search in report["searches"]} == {"cond", "uncond"}
    assert read(tmp_path / report["video"]["file"]).shape == (9, 32, 48, 3)


def test_seeds_and_prompts_decide_the_video(hunyuan_folder: Path, tmp_path: Path) -> None:
    a, b, c = (
        make(hunyuan_folder, tmp_path / name, **flags)[0]["video"]["file"]
        for name, flags in (("a", {}), ("b", {}), ("c", {"seed": [1]}))
    )
    first = read(tmp_path / "a" / a)
    assert (tmp_path / "a" / a).read_bytes() == (tmp_path / "b" / b).read_bytes()
    assert not np.array_equal(first, read(tmp_path / "c" / c))


def test_a_video_does_not_depend_on_those_made_before_it(hunyuan_folder: Path, tmp_path: Path) -> None:
    make(hunyuan_folder, tmp_path / "a", prompt=["something else", PROMPT])
    make(hunyuan_folder, tmp_path / "b", prompt=[PROMPT])
    (alone,) = (tmp_path / "b").glob("*.mp4")
    assert (tmp_path / "a" / alone.name).read_bytes() == alone.read_bytes()


def test_nothing_is_overwritten(hunyuan_folder: Path, tmp_path: Path) -> None:
    make(hunyuan_folder, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    (report,) = make(hunyuan_folder, tmp_path)
    assert report["video"]["file"].endswith("-seed0-2.mp4")
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_observer_hears_everything_in_order(hunyuan_folder: Path, tmp_path: Path) -> None:
    listener = Listener()
    make(hunyuan_folder, tmp_path, listener, seed=[3, 4])
    told = [event for event in listener.heard if event[0] != "phase"]
    assert told[0] == ("loading", str(hunyuan_folder))
    assert told[1] == ("started", 2, 4, "reference")
    one = [("step_done", step) for step in range(4)] + [("decoding",)]
    assert told[2:] == [("video", 0, PROMPT, 3), *one, ("video", 1, PROMPT, 4), *one]


def test_resume_makes_only_what_is_missing(hunyuan_folder: Path, tmp_path: Path) -> None:
    make(hunyuan_folder, tmp_path, seed=[1])
    listener = Listener()
    reports = make(hunyuan_folder, tmp_path, listener, seed=[1, 2], resume=True)
    assert {report["seed"] for report in reports} == {1, 2}
    assert [event for event in listener.heard if event[0] == "video"] == [("video", 0, PROMPT, 2)]
    assert listener.names().count("skipped") == 1
    assert len(list(tmp_path.glob("*.mp4"))) == 2


def test_resume_does_not_load_the_model_when_all_is_complete(hunyuan_folder: Path, tmp_path: Path) -> None:
    first = make(hunyuan_folder, tmp_path, seed=[1, 2])
    before = files(tmp_path)
    listener = Listener()
    resolved = resolve(small_run(hunyuan_folder, tmp_path, seed=[1, 2], resume=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adaspa_cli.jobs.generate.load_pipeline", lambda _config: pytest.fail("the model was loaded"))
        assert list(make_reports(resolved, listener)) == first
    assert listener.names() == ["skipped", "skipped"]
    assert files(tmp_path) == before


@pytest.mark.parametrize("changed", [{"sparsity": 0.6}, {"steps": 5}, {"method": "full"}, {"negative_prompt": "x"}])
def test_what_was_made_with_other_settings_does_not_count(
    hunyuan_folder: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    make(hunyuan_folder, tmp_path)
    (job,) = plan(resolve(small_run(hunyuan_folder, tmp_path, resume=True, **changed)), [PROMPT])
    assert not job.complete
    assert job.place.name.endswith("-2.mp4")


@pytest.mark.parametrize(("then", "now"), [("cpu", "auto"), ("auto", "cpu")])
def test_a_device_by_another_name_is_the_same(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, now: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    make(hunyuan_folder, tmp_path, device=then)
    again = resolve(small_run(hunyuan_folder, tmp_path, device=now, resume=True))
    (job,) = plan(again, [PROMPT])
    assert job.complete
    assert not plan(resolve(small_run(hunyuan_folder, tmp_path, device=now)), [PROMPT])[0].complete
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not plan(again, [PROMPT])[0].complete
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = next(tmp_path.glob("*.report.json"))
    of_gpu = json.loads(report.read_text())
    of_gpu["machine"]["device"] = "cuda:0"
    report.write_text(json.dumps(of_gpu))
    assert not plan(again, [PROMPT])[0].complete


def test_where_and_for_which_others_a_video_was_made_does_not_matter(hunyuan_folder: Path, tmp_path: Path) -> None:
    make(hunyuan_folder, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    flags = {"prompt": ["another", PROMPT], "seed": [0, 1], "resume": True}
    jobs = plan(resolve(small_run(hunyuan_folder, tmp_path / "b", **flags)), [PROMPT])
    assert [(job.prompt, job.seed) for job in jobs if job.complete] == [(PROMPT, 0)]


def test_ctrl_c_keeps_what_is_complete_and_leaves_nothing_half_done(hunyuan_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(hunyuan_folder, tmp_path, InterruptAt(video=1, step=2), seed=[1, 2])
    complete = {path.name for path in tmp_path.glob("*seed1*")}
    assert files(tmp_path) == complete
    assert len(list(tmp_path.glob("*.mp4"))) == len(list(tmp_path.glob("*.report.json"))) == 1
    reports = make(hunyuan_folder, tmp_path, seed=[1, 2], resume=True)
    assert {report["seed"] for report in reports} == {1, 2}
    assert len(list(tmp_path.glob("*.mp4"))) == 2


def test_ctrl_c_while_the_video_is_written_leaves_nothing(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(command: list[str], **_: Any) -> None:
        Path(command[-1]).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("adaspa_cli.files.videos.subprocess.run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(hunyuan_folder, tmp_path)
    assert files(tmp_path) == set()


@pytest.fixture(scope="module")
def broken_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose transformer answers NaN."""
    folder = save(hunyuan_video(), tmp_path_factory.mktemp("broken") / "nan")
    (path,) = (folder / "transformer").glob("*.safetensors")
    weights = load_file(path)
    weights["proj_out.weight"][:] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def test_numbers_that_are_no_picture_are_an_error(broken_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not finite") as caught:
        make(broken_folder, tmp_path)
    assert "--dtype float32" in str(caught.value.hint)
    assert files(tmp_path) == set()


class OutOfMemoryAt(Listener):
    def __init__(self, event: str) -> None:
        super().__init__()
        self._event = event

    def step_done(self, _step: int) -> None:
        if self._event == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 99 GiB")
        torch.empty(2**60)  # more than any machine has: the allocator's own error


@pytest.mark.parametrize("where", ["gpu", "cpu"])
def test_too_little_memory_names_the_knobs(hunyuan_folder: Path, tmp_path: Path, where: str) -> None:
    with pytest.raises(OutOfMemoryError, match="out of memory") as caught:
        make(hunyuan_folder, tmp_path, OutOfMemoryAt(where))
    assert "--vae-tiling" in str(caught.value.hint)
    assert "--frames" in str(caught.value.hint)
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"frames": 6}, ConfigError, r"4k \+ 1 frames, got 6"),
        ({"height": 40}, ConfigError, "height must be a multiple of 16"),
        ({"prompt": [" "]}, ConfigError, "a prompt is empty"),
        ({"attention_backend": "triton"}, BackendError, "'triton' cannot run on cpu"),
        ({"offload": "model"}, BackendError, "--offload model needs a GPU"),
    ],
)
def test_a_run_that_cannot_be_made_leaves_no_folder_behind(
    hunyuan_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(error, match=message):
        make(hunyuan_folder, tmp_path / "new", **flags)
    assert not (tmp_path / "new").exists()


def test_an_output_folder_that_cannot_be_written_is_refused_before_loading(
    hunyuan_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    listener = Listener()
    with pytest.raises(OutputError, match="cannot write to"):
        make(hunyuan_folder, tmp_path / "file" / "videos", listener)
    assert listener.heard == []


def test_true_guidance_on_a_model_without_it_is_refused(cogvideox_folder: Path, tmp_path: Path) -> None:
    listener = Listener()
    with pytest.raises(ConfigError, match="true_cfg_scale is for HunyuanVideo"):
        make(cogvideox_folder, tmp_path, listener, frames=9, true_cfg_scale=3.0, negative_prompt="x")
    assert "video" not in listener.names(), "refused before the first video begins"

"""search-masks: what is searched and averaged, how far it runs, and what an interruption leaves; then runs with it."""

import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import adaspa_cli
from adaspa_cli.config import resolve
from adaspa_cli.config.search_masks import SearchOptions
from adaspa_cli.errors import AdaspaError, ConfigError, DiskFullError, MaskFileError, OutputError
from adaspa_cli.files.videos import read_frames
from adaspa_cli.jobs import search_masks as job
from adaspa_cli.jobs.search_masks import search_masks
from adaspa_cli.maskfiles import MaskFile
from adaspa_cli.masks.plan import DENSE, LOAD, SPARSE
from adaspa_cli.masks.selection import select
from adaspa_cli.masks.text import sums_with_text, video_part
from adaspa_cli.models.loading import device_name
from tests.pipelines import PROMPT, Listener, hunyuan_video, latents, make_reports, masks_at_end, small_run

SIZE = {"height": 64, "width": 96, "frames": 9}  # 288 video tokens: 18 blocks of 16
OTHER = "two red squares move slowly to the right"


def search(folder: Path, out: Path, listener: Any = None, prompts: Any = (PROMPT,), **changed: Any) -> MaskFile:
    options = {
        key: changed.pop(key) for key in ("keep_ranking", "keep_sums", "first_step_only", "resume") if key in changed
    }
    settings = resolve(small_run(folder, out.parent / "videos", **SIZE | changed))
    return search_masks(settings, SearchOptions(out, **options), list(prompts), listener or Listener())


def make(folder: Path, out: Path, **flags: Any) -> dict[str, Any]:
    (report,) = make_reports(resolve(small_run(folder, out, **SIZE | flags)), Listener())
    return report


class InterruptAt(Listener):
    """Presses Ctrl-C at an attention call."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self._left = call

    def phase(self, _phase: str) -> None:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt


def test_the_masks_are_those_of_a_run(hunyuan_folder: Path, tmp_path: Path) -> None:
    file = search(hunyuan_folder, tmp_path / "masks.safetensors")
    assert list(file.verify()) == [(layer, "cond", step) for layer in range(4) for step in (1, 3)]
    pipe = hunyuan_video()
    settings = {"block_size": 16, "sparsity": 0.5, "attention_backend": "reference"}
    with adaspa_cli.apply(pipe, "adaspa", search_steps=(1, 3), **settings) as handle:
        masks = masks_at_end(handle)
        latents(pipe)
        for (layer, branch, _), found in masks.items():
            entry = file.entry((layer, branch, 3))
            assert torch.equal(
                file.video_mask(entry.place), video_part(found.mask.to_bool(), file.description.layout, (16, 16))
            )
            torch.testing.assert_close(torch.tensor(entry.recall), found.recall, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(torch.tensor(entry.density), found.mask.density())


def test_the_file_says_what_it_was_made_from(hunyuan_folder: Path, tmp_path: Path) -> None:
    file = search(hunyuan_folder, tmp_path / "masks.safetensors", prompts=(PROMPT, OTHER), seed=[3, 4])
    facts = file.description
    assert (facts.prompts, facts.seeds) == ((PROMPT, OTHER), (3, 4))
    assert (facts.steps, facts.search_steps, facts.block_size) == (4, (1, 3), 16)
    assert (facts.layers, facts.heads, facts.branches) == (4, 2, ("cond",))
    assert (facts.layout.frames, facts.layout.height, facts.layout.width) == (3, 8, 12)
    assert (facts.method.algorithm, facts.method.sparsity) == ("adaspa", 0.5)
    assert facts.model.pipeline == "HunyuanVideoPipeline"
    assert len(facts.model.transformer) == 64
    assert facts.versions["torch"] == version("torch")


@pytest.mark.parametrize("method", ["adaspa", "frame-region"])
@pytest.mark.parametrize("family", ["hunyuan", "cogvideox"])
def test_a_checked_run_makes_the_video_of_the_run_that_was_searched(
    method: str, family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With a check the first step of masks is dense, as a search is: then nothing differs but where masks come from."""
    folder = request.getfixturevalue(f"{family}_folder")
    file = search(folder, tmp_path / "masks.safetensors", method=method)
    assert file.description.branches == (("cond",) if family == "hunyuan" else ("cond", "uncond"))
    settings = {"method": method, "lossless": True}
    usual = make(folder, tmp_path / "usual", **settings)
    checked = make(folder, tmp_path / "checked", masks=str(file.path), masks_min_recall=0.01, **settings)
    videos = [
        (tmp_path / name / report["video"]["file"]).with_suffix(".lossless.mkv")
        for name, report in (("usual", usual), ("checked", checked))
    ]
    assert np.array_equal(*map(read_frames, videos))
    assert [step["phase"] for step in checked["steps"]] == ["dense", "mask check", "sparse", "loaded masks"]
    assert checked["search_steps"] == {"asked": [1, 3], "planned": [], "done": []}
    assert all(row["loaded"] for row in checked["searches"])
    assert usual["mask_file"] is None
    assert not any(row["loaded"] for row in usual["searches"])
    found = checked["mask_file"]
    assert (found["file"], found["checksum"], found["below"]) == ("masks.safetensors", file.checksum, 0)
    assert found["schedule"] == [{"step": 1, "searched_at": 1}, {"step": 3, "searched_at": 3}]
    assert len(found["checks"]) == file.description.layers * len(file.description.branches)
    for check in found["checks"]:
        assert check["measured"] == pytest.approx(check["stored"], abs=1e-4)


def test_masks_of_one_branch_serve_both(cogvideox_folder: Path, tmp_path: Path) -> None:
    shared = {"share_cfg_masks": True}
    listener = Listener()
    file = search(cogvideox_folder, tmp_path / "masks.safetensors", listener, **shared)
    assert file.description.branches == ("cond",)
    (estimated,) = [told for told in listener.heard if told[0] == "estimated"]
    assert estimated[1] == file.description.data_bytes
    settings = {"masks": str(file.path), "masks_from_start": True}
    report = make(cogvideox_folder, tmp_path / "shared", **settings, **shared)
    assert {row["branch"] for row in report["searches"]} == {"cond"}
    assert all(step["density"] < 1 for step in report["steps"])
    with pytest.raises(MaskFileError, match="guidance branch 'uncond'") as raised:
        make(cogvideox_folder, tmp_path / "not", **settings)
    assert raised.value.hint is not None
    assert "--share-cfg-masks" in raised.value.hint
    both = search(cogvideox_folder, tmp_path / "both.safetensors")
    report = make(cogvideox_folder, tmp_path / "of both", **settings | {"masks": str(both.path)}, **shared)
    assert {row["branch"] for row in report["searches"]} == {"cond"}


def test_the_steps_of_shared_masks_are_named_after_the_search(cogvideox_folder: Path, tmp_path: Path) -> None:
    report = make(cogvideox_folder, tmp_path / "out", share_cfg_masks=True)
    assert [step["phase"] for step in report["steps"]] == ["dense", "search", "sparse", "cached search"]
    assert {row["branch"] for row in report["searches"]} == {"cond"}
    assert report["steps"][1]["density"] == 1
    assert report["steps"][2]["density"] < 1


def test_a_run_without_search_or_warm_up(hunyuan_folder: Path, tmp_path: Path) -> None:
    """The prompt is longer than the one that was searched."""
    file = search(hunyuan_folder, tmp_path / "masks.safetensors")
    report = make(
        hunyuan_folder, tmp_path / "out", masks=str(file.path), masks_from_start=True, prompt=[f"{OTHER} {OTHER}"]
    )
    assert [step["phase"] for step in report["steps"]] == ["loaded masks", "sparse", "sparse", "loaded masks"]
    assert all(step["density"] < 1 for step in report["steps"])
    assert report["mask_file"]["checks"] == []


def test_layers_that_recall_too_little_are_searched(hunyuan_folder: Path, tmp_path: Path) -> None:
    file = search(hunyuan_folder, tmp_path / "masks.safetensors")
    report = make(hunyuan_folder, tmp_path / "out", masks=str(file.path), masks_min_recall=0.999, prompt=[OTHER])
    assert [step["phase"] for step in report["steps"]] == ["dense", "mask check", "sparse", "search"]
    assert report["search_steps"]["done"] == [1, 3]
    assert report["mask_file"]["below"] == report["mask_file"]["searched"] == 4
    assert not any(row["loaded"] for row in report["searches"])


def test_another_sparsity_from_a_ranking(hunyuan_folder: Path, tmp_path: Path) -> None:
    file = search(hunyuan_folder, tmp_path / "masks.safetensors", keep_ranking=0.8)
    reports = [
        make(hunyuan_folder, tmp_path / f"{sparsity}", masks=str(file.path), sparsity=sparsity)
        for sparsity in (0.5, 0.8)
    ]
    assert reports[1]["steps"][2]["density"] < reports[0]["steps"][2]["density"] < 1


def test_prompts_and_seeds_are_averaged(hunyuan_folder: Path, tmp_path: Path) -> None:
    """Also prompts of other lengths; the masks are those of the mean, not of one of them."""
    keep = {"keep_sums": True, "sparsity": 0.6}
    jobs = [(prompt, seed) for prompt in (PROMPT, OTHER) for seed in (0, 1)]
    alone = [
        search(hunyuan_folder, tmp_path / f"{i}.safetensors", prompts=(prompt,), seed=[seed], **keep)
        for i, (prompt, seed) in enumerate(jobs)
    ]
    assert len({file.description.layout.text_tokens for file in alone}) == 2
    together = search(hunyuan_folder, tmp_path / "mean.safetensors", prompts=(PROMPT, OTHER), seed=[0, 1], **keep)
    layout = together.description.layout
    assert layout == alone[0].description.layout
    for place in together.description.places():
        sums = [file.sums(place) for file in alone]
        mean = [torch.stack(each).mean(0) for each in zip(*sums, strict=True)]
        video, text = together.sums(place)
        torch.testing.assert_close(video, mean[0], rtol=2e-3, atol=1e-3)
        torch.testing.assert_close(text, mean[1], rtol=1e-3, atol=1e-3)
        found = select(sums_with_text(*mean, layout, (16, 16)), layout, (16, 16), 0.6, head_adaptive=True)
        agree = together.video_mask(place) == video_part(found.mask.to_bool(), layout, (16, 16))
        assert agree.float().mean() > 0.995, "float16 sums may swap blocks of nearly the same weight"
        torch.testing.assert_close(torch.tensor(together.entry(place).recall), found.recall, rtol=2e-3, atol=2e-3)


def test_a_search_ends_with_its_last_step(hunyuan_folder: Path, tmp_path: Path) -> None:
    listener = Listener()
    search(hunyuan_folder, tmp_path / "a.safetensors", listener, steps=8, search_steps=(1, 3))
    assert [told[1] for told in listener.heard if told[0] == "step_done"] == [0, 1, 2, 3]
    assert listener.names().count("phase") == 4 * 4
    listener = Listener()
    file = search(hunyuan_folder, tmp_path / "b.safetensors", listener, steps=8, first_step_only=True)
    assert [told[1] for told in listener.heard if told[0] == "step_done"] == [0, 1]
    assert file.description.search_steps == (1,)
    assert ("started", 1, 2, "reference") in listener.heard


def test_a_mask_of_the_first_step_serves_a_run(hunyuan_folder: Path, tmp_path: Path) -> None:
    file = search(hunyuan_folder, tmp_path / "b.safetensors", first_step_only=True)
    report = make(hunyuan_folder, tmp_path / "out", masks=str(file.path))
    assert [step["phase"] for step in report["steps"]] == ["dense", "loaded masks", "sparse", "sparse"]


# 3 videos of 4 steps with 4 calls each: at call 26 the second video's first search is half done.
@pytest.mark.parametrize("call", [3, 6, 17, 22, 26, 31, 38, 46])
def test_an_interrupted_search_leaves_no_file_and_goes_on_to_the_same_bytes(
    call: int, hunyuan_folder: Path, tmp_path: Path
) -> None:
    usual = {"prompts": (PROMPT, OTHER, "a star")}
    whole = search(hunyuan_folder, tmp_path / "whole.safetensors", **usual)
    out = tmp_path / "masks.safetensors"
    with pytest.raises(KeyboardInterrupt):
        search(hunyuan_folder, out, InterruptAt(call), **usual)
    assert not list(tmp_path.glob("masks*.safetensors")), "nothing that looks like a mask file"
    if call > 4:
        with pytest.raises(OutputError, match="an unfinished search is in"):
            search(hunyuan_folder, out, **usual)
    listener = Listener()
    file = search(hunyuan_folder, out, listener, resume=True, **usual)
    assert file.path.read_bytes() == whole.path.read_bytes()
    assert listener.names().count("video") == 3 - call // 16
    assert not (tmp_path / "masks.safetensors.search").exists()


def test_an_interruption_while_the_file_is_joined_leaves_none(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaspa_cli.maskfiles import parts

    def interrupted(path: Path, *_: Any) -> None:
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    out = tmp_path / "masks.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_mask_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search(hunyuan_folder, out)
    assert not list(tmp_path.glob("masks*.safetensors"))
    listener = Listener()
    (tmp_path / "masks.partial7.safetensors").touch()  # of a process that was killed
    search(hunyuan_folder, out, listener, resume=True)
    assert "video" not in listener.names(), "the search itself was over"
    assert not list(tmp_path.glob("*.partial*"))


def test_a_finished_search_is_left_as_it_is(hunyuan_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.safetensors"
    search(hunyuan_folder, out)
    before = out.read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        search(hunyuan_folder, out)
    listener = Listener()
    search(hunyuan_folder, out, listener, resume=True)
    assert listener.heard == [("skipped", out)]
    for changed in ({"sparsity": 0.6}, {"width": 48}, {"seed": [1]}, {"keep_sums": True}, {"first_step_only": True}):
        with pytest.raises(OutputError, match="from a search with other settings"):
            search(hunyuan_folder, out, resume=True, **changed)
    assert out.read_bytes() == before


def test_another_search_does_not_go_on_with_this_one(hunyuan_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.safetensors"
    with pytest.raises(KeyboardInterrupt):
        search(hunyuan_folder, out, InterruptAt(20), prompts=(PROMPT, OTHER))
    with pytest.raises(OutputError, match=r"had other settings: sparsity 0.5 then, 0.6 now"):
        search(hunyuan_folder, out, prompts=(PROMPT, OTHER), sparsity=0.6, resume=True)
    with pytest.raises(OutputError, match=r"had other settings: prompts"):
        search(hunyuan_folder, out, prompts=(PROMPT,), resume=True)
    (tmp_path / "masks.safetensors.search" / "state.json").write_text("{")
    with pytest.raises(OutputError, match=r"cannot read .*state.json"):
        search(hunyuan_folder, out, prompts=(PROMPT, OTHER), resume=True)


@pytest.mark.parametrize(("then", "now"), [("cpu", "auto"), ("auto", "cpu")])
@pytest.mark.parametrize("finished", [True, False])
def test_a_device_by_another_name_is_the_same(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool, then: str, now: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out, prompts = tmp_path / "masks.safetensors", (PROMPT, OTHER)
    if finished:
        search(hunyuan_folder, out, prompts=prompts, device=then)
    else:
        with pytest.raises(KeyboardInterrupt):
            search(hunyuan_folder, out, InterruptAt(20), prompts=prompts, device=then)
    message = "from a search with other settings" if finished else "device 'cpu' then, 'cuda' now"
    with monkeypatch.context() as patch:
        patch.setattr(job, "device_name", lambda _name: "cuda")
        with pytest.raises(OutputError, match=message):  # a GPU's masks are others
            search(hunyuan_folder, out, prompts=prompts, device="auto", resume=True)
    listener = Listener()
    search(hunyuan_folder, out, listener, prompts=prompts, device=now, resume=True)
    assert listener.names().count("video") == (0 if finished else 1)


@pytest.mark.parametrize("finished", [True, False])
def test_a_search_of_an_older_version_is_known(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    """It noted the device as it was given."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out, prompts = tmp_path / "masks.safetensors", (PROMPT, OTHER)
    with monkeypatch.context() as patch:
        patch.setattr(job, "device_name", lambda name: name)
        if finished:
            search(hunyuan_folder, out, prompts=prompts, device="auto")
        else:
            with pytest.raises(KeyboardInterrupt):
                search(hunyuan_folder, out, InterruptAt(20), prompts=prompts, device="auto")
    listener = Listener()
    search(hunyuan_folder, out, listener, prompts=prompts, device="auto", resume=True)
    assert listener.names().count("video") == (0 if finished else 1)


def test_the_name_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpu, chosen in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        named = [device_name(name) for name in ("auto", "cpu", "cuda", "cuda:0", "cuda:1")]
        assert named == [chosen, "cpu", "cuda", "cuda", "cuda:1"]


def test_sizes_are_estimated_before_the_search(hunyuan_folder: Path, tmp_path: Path) -> None:
    listener = Listener()
    file = search(hunyuan_folder, tmp_path / "masks.safetensors", listener, prompts=(PROMPT, OTHER))
    (told,) = [told for told in listener.heard if told[0] == "estimated"]
    assert told[1:] == (file.description.data_bytes, 4 * 2 * 2 * 18 * 18 * 4)
    assert listener.names().index("estimated") < listener.names().index("video")


def test_a_disk_that_is_too_small_is_refused_before_the_search(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job.shutil, "disk_usage", lambda _folder: SimpleNamespace(free=1000))
    listener = Listener()
    with pytest.raises(OutputError, match="and the search needs about"):
        search(hunyuan_folder, tmp_path / "masks.safetensors", listener)
    assert "video" not in listener.names()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"method": "full"}, ConfigError, "'full' does not search for masks"),
        ({"method": "minference"}, ConfigError, "does not search for masks"),
        ({"method": "adacache"}, ConfigError, r"'adacache' \(algorithm full\) does not search for masks"),
        ({"cache": "first-block"}, ConfigError, "skips calls that a search needs"),
        ({"keep_ranking": 0.6}, ConfigError, r"keep_ranking must lie in \[0.75, 1\], got 0.6"),
        ({"keep_ranking": 1.5}, ConfigError, "keep_ranking must lie in"),
        ({"method": "frame-region", "keep_ranking": 0.9}, ConfigError, "can't be derived from a ranking"),
        ({"block_size": 512}, ConfigError, "288 video tokens fill no block of 512"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    changed: dict[str, Any], error: type[AdaspaError], message: str, hunyuan_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        search(hunyuan_folder, tmp_path / "masks.safetensors", **changed)
    assert not list(tmp_path.iterdir())


def test_a_mask_file_has_its_suffix(hunyuan_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the name of a mask file ends in .safetensors, got masks.pt"):
        search(hunyuan_folder, tmp_path / "masks.pt")


def test_masks_of_another_model_or_size_make_no_video(
    hunyuan_folder: Path, cogvideox_folder: Path, tmp_path: Path
) -> None:
    file = search(hunyuan_folder, tmp_path / "masks.safetensors")
    for folder, changed, field in (
        (cogvideox_folder, {}, "pipeline is HunyuanVideoPipeline in the file"),
        (hunyuan_folder, {"frames": 13}, "frames is 3 in the file and 4 in the run"),
        (hunyuan_folder, {"true_cfg_scale": 2.0, "negative_prompt": "a square"}, "guidance branch 'uncond'"),
    ):
        with pytest.raises(MaskFileError, match=field):
            make(folder, tmp_path / "out", masks=str(file.path), **changed)
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_a_corrupt_file_is_refused_before_the_model_is_loaded(hunyuan_folder: Path, tmp_path: Path) -> None:
    file = search(hunyuan_folder, tmp_path / "masks.safetensors")
    content = bytearray(file.path.read_bytes())
    content[-1] ^= 1
    file.path.write_bytes(content)
    listener = Listener()
    with pytest.raises(MaskFileError, match="the checksum does not fit the bits of layer 3"):
        list(make_reports(resolve(small_run(hunyuan_folder, tmp_path / "out", masks=str(file.path), **SIZE)), listener))
    assert listener.heard == []


def test_resume_sees_that_the_masks_changed(hunyuan_folder: Path, tmp_path: Path) -> None:
    """A video is complete if the masks in the file are the same, wherever it lies."""
    first = search(hunyuan_folder, tmp_path / "a.safetensors")
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(first.path.read_bytes())
    other = search(hunyuan_folder, tmp_path / "b.safetensors", seed=[5])

    def made(path: Path) -> bool:
        listener = Listener()
        flags = small_run(hunyuan_folder, tmp_path / "out", masks=str(path), resume=True, **SIZE)
        list(make_reports(resolve(flags), listener))
        return "video" in listener.names()

    assert [made(path) for path in (first.path, moved, other.path)] == [True, False, True]


def test_apply_takes_a_mask_file(hunyuan_folder: Path, tmp_path: Path) -> None:
    file = search(hunyuan_folder, tmp_path / "masks.safetensors")
    settings = {"block_size": 16, "sparsity": 0.5, "attention_backend": "reference"}
    pipe = hunyuan_video()
    with adaspa_cli.apply(pipe, masks=str(file.path), **settings) as handle:
        latents(pipe)
        assert {call.plan for call in handle.engine.calls} == {
            DENSE,
            LOAD,
            SPARSE,
        }
    with pytest.raises(MaskFileError, match=r"sparsity is 0.5 in the file and 0.7 in the run"):
        adaspa_cli.apply(pipe, masks=str(file.path), **settings | {"sparsity": 0.7})
    with adaspa_cli.apply(pipe, "full"):
        pass  # the refused one left nothing behind


def test_the_description_is_json_that_programs_can_read(hunyuan_folder: Path, tmp_path: Path) -> None:
    file = search(hunyuan_folder, tmp_path / "masks.safetensors")
    assert json.loads(json.dumps(file.description.as_json()))["steps"] == 4


def test_a_full_disk_is_told_and_the_search_goes_on(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaspa_cli.maskfiles import parts

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "masks.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_part", full)
        with pytest.raises(DiskFullError, match="the disk is full") as told:
            search(hunyuan_folder, out)
    assert "--resume" in str(told.value.hint)
    assert not out.exists()
    assert list(search(hunyuan_folder, out, resume=True).verify())

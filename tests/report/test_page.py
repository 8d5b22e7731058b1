"""The page of a latency report: whole in itself, with the figures of the report and its video."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from adaspa_cli.config import resolve
from adaspa_cli.errors import ConfigError
from adaspa_cli.files.typed_json import from_json
from adaspa_cli.files.videos import read_frames
from adaspa_cli.jobs.places import page_path, report_path
from adaspa_cli.jobs.plan import plan
from adaspa_cli.masks.plan import PLANS
from adaspa_cli.quality.by_frame import by_frame
from adaspa_cli.report.compare import Compared
from adaspa_cli.report.heat import heats
from adaspa_cli.report.page import PHASES, page, time_parts
from adaspa_cli.report.schema import Report, Search, read_report
from adaspa_cli.report.words import pace
from tests.pages import Page, loads_nothing, read
from tests.pipelines import PROMPT, Listener, make_reports, small_run

Made = tuple[Path, str, Page, dict[str, Any]]


def typed(report: dict[str, Any]) -> Report:
    return from_json(Report, json.loads(json.dumps(report)))


def make(folder: Path, model: Path, **flags: Any) -> Path:
    """One run; returns its video."""
    (report,) = make_reports(resolve(small_run(model, folder, **flags)), Listener())
    return folder / (report["video"]["file"] or "none")


@pytest.fixture(scope="module")
def dense(hunyuan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a dense run."""
    return report_path(make(tmp_path_factory.mktemp("dense"), hunyuan_folder, method="full"))


@pytest.fixture(scope="module")
def made(dense: Path, hunyuan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    video = make(tmp_path_factory.mktemp("out"), hunyuan_folder, compare_with=(str(dense),))
    text = page_path(video).read_text(encoding="utf-8")
    return video, text, read(text), json.loads(report_path(video).read_text())


def test_it_loads_nothing(made: Made) -> None:
    _, text, parsed, _ = made
    loads_nothing(text, parsed)


def test_a_page_of_one_run_has_no_script(dense: Path) -> None:
    text = page(read_report(dense), None)
    assert "<script" not in text
    assert "script-src" not in text


def test_both_videos_are_inside_as_they_are(made: Made, dense: Path) -> None:
    video, _, parsed, _ = made
    inside = [str(attributes["src"]) for tag, attributes in parsed.tags if tag == "video"]
    other = dense.with_name(json.loads(dense.read_text())["video"]["file"])
    contents = [base64.b64decode(source.removeprefix("data:video/mp4;base64,")) for source in inside]
    assert contents == [video.read_bytes(), other.read_bytes()]


def test_the_report_says_how_far_its_video_is_from_the_other(made: Made, dense: Path) -> None:
    video, text, _, report = made
    other = json.loads(dense.read_text())
    compared = typed(report).compared
    assert compared is not None
    curves = by_frame(read_frames(video), read_frames(dense.with_name(other["video"]["file"])))
    assert compared.psnr == pytest.approx(curves["psnr"], abs=1e-4)
    assert compared.ssim == pytest.approx(curves["ssim"], abs=1e-6)
    assert compared.speed_up == pytest.approx(other["seconds"]["total"] / report["seconds"]["total"])
    assert (compared.method, compared.dense, compared.lossless) == ("full", True, False)
    assert f"PSNR {compared.mean('psnr'):.2f} dB, SSIM {compared.mean('ssim'):.4f}" in text


def test_a_comparison_is_told_to_the_observer_and_can_be_interrupted(
    dense: Path, hunyuan_folder: Path, tmp_path: Path
) -> None:
    class Interrupts(Listener):
        def comparing(self, done: int, frames: int) -> None:
            self.heard.append(("comparing", done, frames))
            if done:
                raise KeyboardInterrupt

    listener = Interrupts()
    resolved = resolve(small_run(hunyuan_folder, tmp_path, compare_with=(str(dense),)))
    with pytest.raises(KeyboardInterrupt):
        make_reports(resolved, listener)
    frames = resolved.config.sampling.frames
    assert listener.heard[-2:] == [("comparing", 0, frames), ("comparing", frames, frames)]
    assert not list(tmp_path.glob("*seed*"))


def test_a_complete_video_is_compared_when_it_is_resumed(dense: Path, hunyuan_folder: Path, tmp_path: Path) -> None:
    first = make(tmp_path, hunyuan_folder)
    before = json.loads(report_path(first).read_text())
    listener = Listener()
    resolved = resolve(small_run(hunyuan_folder, tmp_path, compare_with=(str(dense),), resume=True))
    make_reports(resolved, listener)
    after = json.loads(report_path(first).read_text())
    compared = after.pop("compared")
    assert after == {key: value for key, value in before.items() if key != "compared"}
    assert compared["psnr"]
    text = page_path(first).read_text()
    assert f"PSNR {typed(after | {'compared': compared}).compared.mean('psnr'):.2f} dB" in text
    heard = [event for event in listener.heard if event[0] == "comparing"]
    make_reports(resolved, listener)  # shown already: not measured again
    assert [event for event in listener.heard if event[0] == "comparing"] == heard != []
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == sorted(
        path.name for path in (first, page_path(first), report_path(first))
    )


def test_a_page_without_the_other_video_says_nothing_of_it(made: Made) -> None:
    video, text, _, report = made
    alone = page(typed(report), video)
    assert re.search(r"PSNR \d", text)
    assert not re.search(r"PSNR \d", alone)


def test_frames_that_both_runs_kept_are_compared_before_compression(hunyuan_folder: Path, tmp_path: Path) -> None:
    first = make(tmp_path / "dense", hunyuan_folder, method="full", lossless=True)
    beside = (str(report_path(first)),)
    second = make(tmp_path / "out", hunyuan_folder, method="full", lossless=True, seed=(0,), compare_with=beside)
    compared = read_report(report_path(second)).compared
    assert compared is not None
    assert compared.lossless
    assert compared.mean("psnr") == 100  # the same frames


def test_the_figures_are_the_reports(made: Made, dense: Path) -> None:
    _, text, parsed, report = made
    words = "".join(parsed.text)
    other = json.loads(dense.read_text())
    for key in ("total", "denoising", "attention"):
        assert f"{report['seconds'][key]:.1f} s" in words
    how = pace(report["seconds"]["denoising"], other["seconds"]["denoising"])
    assert f"Denoising with adaspa, 50% left out was {how} as with full, dense, and the whole run " in words
    for search in report["searches"]:
        for head, (density, recall) in enumerate(zip(search["density"], search["recall"], strict=True)):
            for value in (density, recall):
                assert f'title="layer {search["layer"]}, head {head}: {value:.3f}"' in text
    bars = re.findall(r'title="step (\d+), ([a-z ]+): ', text)
    expected = [(str(step["step"]), step["phase"]) for run in (report, other) for step in run["steps"]]
    assert bars == expected


def test_runs_of_one_method_are_told_apart(made: Made) -> None:
    report = made[3]
    other = report | {"settings": report["settings"] | {"block_size": {"value": 128}, "out": {"value": "elsewhere"}}}
    words = "".join(read(page(typed(report), None, Compared(typed(other), None))).text)
    assert "adaspa, 50% left out (block_size 16)" in words
    assert "adaspa, 50% left out (block_size 128)" in words
    words = "".join(read(page(typed(report), None, Compared(typed(report), None))).text)
    assert "adaspa, 50% left out (this run)" in words


@pytest.mark.parametrize(("own", "which"), [(True, "this run"), (False, "the compared run")])
def test_it_says_which_run_alone_was_compiled(made: Made, own: bool, which: str) -> None:
    report = made[3]
    compiled = report | {"settings": report["settings"] | {"compile": {"value": True, "origin": "flag"}}}
    pair = (compiled, report) if own else (report, compiled)
    words = "".join(read(page(typed(pair[0]), None, Compared(typed(pair[1]), None))).text)
    assert f"blocks ran through torch.compile only in {which}" in words
    assert "torch.compile" not in "".join(read(page(typed(report), None, Compared(typed(report), None))).text)


@pytest.mark.parametrize("own", [True, False])
def test_it_says_which_linear_layers_multiplied_in_fp8(made: Made, own: bool) -> None:
    report = made[3]
    fp8 = report | {"linear": {"dtype": "float8_e4m3fn", "layers": 30, "of": 34, "weight_bytes": 7}}
    pair = (fp8, report) if own else (report, fp8)
    words = "".join(read(page(typed(pair[0]), None, Compared(typed(pair[1]), None))).text)
    found = "30 of 34 linear layers of the blocks multiplied in FP8 (e4m3)"
    assert (found if own else f"compared run: {found}") in words
    assert ("compared run: no linear layer multiplied in FP8" in words) is own
    assert "FP8" not in "".join(read(page(typed(report), None, Compared(typed(report), None))).text)


def test_the_parts_of_the_time_sum_to_the_whole(made: Made) -> None:
    report = made[3]
    parts = time_parts(typed(report))
    assert all(part.seconds >= 0 for part in parts)
    assert sum(part.seconds for part in parts) == pytest.approx(report["seconds"]["total"])
    attention = sum(part.seconds for part in parts if part.name.startswith("attention, "))
    assert attention == pytest.approx(report["seconds"]["attention"])
    assert {"attention, dense", "attention, search", "attention, sparse", "attention, cached search"} < {
        part.name for part in parts
    }


def search(step: int, layer: int, density: list[float], branch: str = "cond") -> Search:
    return Search(layer, branch, 0, step, False, tuple(density), None)


def test_masks_of_many_steps_are_averaged() -> None:
    (heat,) = heats([search(step, layer, [0.1 * step, 0.5]) for step in range(5) for layer in (1, 0)])
    assert heat.title == "Density, mean of steps 0 to 4"
    assert [layer for layer, _ in heat.rows] == [0, 1]
    assert heat.rows[0][1] == pytest.approx([0.2, 0.5])
    assert heat.strength(heat.low) == 0
    assert heat.strength(heat.high) == 1


def test_masks_of_few_steps_and_of_branches_stand_apart() -> None:
    found = heats([search(step, 0, [0.5], branch) for step in (1, 3) for branch in ("cond", "uncond")])
    assert [heat.title.removeprefix("Density, ") for heat in found] == [
        "step 1, cond",
        "step 1, uncond",
        "step 3, cond",
        "step 3, uncond",
    ]
    assert found[0].strength(0.5) == 0.5  # of one value only


def test_dense_attention_has_no_heat_map(dense: Path) -> None:
    text = page(read_report(dense), None)
    assert "Density and recall by layer" not in text
    assert "ended in latents" in text


def test_prompts_are_text(made: Made) -> None:
    report = {**made[3], "prompt": "<b>a</b> & 'b'"}
    text = page(typed(report), None)
    read(text)
    assert "<b>a</b>" not in text


def test_other_methods_and_latents_have_pages(hunyuan_folder: Path, tmp_path: Path) -> None:
    flags = {"method": "minference", "height": 64, "width": 96, "cache": "adacache", "seed": (0, 1), "decode": False}
    reports = list(make_reports(resolve(small_run(hunyuan_folder, tmp_path, **flags)), Listener()))
    texts = [path.read_text(encoding="utf-8") for path in tmp_path.glob("*.report.html")]
    assert len(texts) == len(reports) == 2
    for text in texts:
        read(text)
        assert "adacache skipped" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"seed": (1,)}, "with seed 0, which this run does not make"),
        ({"prompt": ["a cat"]}, f"of the prompt '{PROMPT}'"),
        ({"steps": 5}, "steps is 4 there, and 5 here"),
        ({"height": 64}, "height is 32 there, and 64 here"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    dense: Path, hunyuan_folder: Path, tmp_path: Path, flags: dict[str, Any], message: str
) -> None:
    settings = small_run(hunyuan_folder, tmp_path / "out", compare_with=(str(dense),), **flags)
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan(resolve(settings), settings["prompt"])
    assert not (tmp_path / "out").exists()


def test_a_part_of_a_model_is_not_compared_with_more_of_it(dense: Path, hunyuan_folder: Path, tmp_path: Path) -> None:
    report = json.loads(dense.read_text())
    report["settings"] |= {"random_weights": {"value": True}, "layers": {"value": 2}}
    path = tmp_path / "two.report.json"
    path.write_text(json.dumps(report))
    settings = small_run(hunyuan_folder, tmp_path, compare_with=(str(path),), random_weights=True, layers=4)
    with pytest.raises(ConfigError, match="layers is 2 there, and 4 here"):
        plan(resolve(settings), settings["prompt"])


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), (b"\xff", "not UTF-8"), (b"{", "not JSON"), (b"[]", "not a latency report")],
)
def test_what_is_no_report_is_refused(
    hunyuan_folder: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "x.report.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        plan(resolve(small_run(hunyuan_folder, tmp_path, compare_with=(str(path),))), [PROMPT])


def test_a_report_named_twice_or_without_its_video_is_refused(
    dense: Path, hunyuan_folder: Path, tmp_path: Path
) -> None:
    twice = small_run(hunyuan_folder, tmp_path, compare_with=(str(dense), str(dense)))
    with pytest.raises(ConfigError, match="second report"):
        plan(resolve(twice), [PROMPT])
    (tmp_path / "x.report.json").write_bytes(dense.read_bytes())
    alone = small_run(hunyuan_folder, tmp_path, compare_with=(str(tmp_path / "x.report.json"),))
    with pytest.raises(ConfigError, match="is not there"):
        plan(resolve(alone), [PROMPT])


def test_every_phase_has_a_colour_of_its_own() -> None:
    assert set(PHASES) == {plan.phase for plan in PLANS} | {"skipped"}
    assert len(set(PHASES.values())) == len(PHASES)

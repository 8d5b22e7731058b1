"""Steps by kind: which are computed, what the others answer, and how their times are estimated."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from adaspa_cli.app import app
from adaspa_cli.config import Resolved, resolve
from adaspa_cli.errors import ConfigError, RunError
from adaspa_cli.files.typed_json import from_json
from adaspa_cli.jobs.generate import claim, make
from adaspa_cli.jobs.plan import Job, plan
from adaspa_cli.masks.plan import CACHED_SEARCH, DENSE, LOAD, SEARCH, SPARSE
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.report.page import page, time_parts
from adaspa_cli.report.schema import Report, Step
from adaspa_cli.report.steps import with_estimates
from adaspa_cli.sampling.run import Session, session
from adaspa_cli.sampling.steps_per_phase import choose_steps
from tests.pages import read
from tests.pipelines import PROMPT, Listener, make_reports, small_run

AUTO = {"attention_backend": "auto"}
# Flags of a run of 12 steps, the phases of its steps, and those that are computed with 2 of each phase.
PHASES = ["dense"] * 4 + ["search"] + ["sparse"] * 3 + ["cached search"] + ["sparse"] * 3
CASES: dict[str, tuple[dict[str, Any], list[str], set[int]]] = {
    "adaspa": ({"search_steps": (4, 8)}, PHASES, {0, 1, 2, 4, 5, 6, 8}),
    "fresh LSE": (
        {"method": "adaspa-plus", "sparsity": 0.9, "search_steps": (4, 8)},
        PHASES,
        {0, 1, 2, 4, 5, 6, 7, 8},
    ),
    "from the start": ({"search_steps": (0,)}, ["search"] + ["sparse"] * 11, {0, 1, 2}),
    "every search": (
        {"method": "adaspa-no-lse-cache", "search_steps": (0, 2, 4, 6)},
        ["search", "sparse"] * 3 + ["search"] + ["sparse"] * 5,
        {0, 1, 2, 3, 4, 6},
    ),
    "minference": ({"method": "minference", "search_steps": (4,)}, ["dense"] * 4 + ["estimate"] * 8, {0, 1, 2, 4, 5}),
    "full": ({"method": "full"}, ["dense"] * 12, {0, 1, 2}),
    "diffusers": ({"method": "diffusers", **AUTO}, ["dense"] * 12, {0, 1, 2}),
    "tomesd": ({"method": "tomesd", **AUTO}, ["merged"] * 12, {0, 1, 2}),
}


def settings(folder: Path, out: Path, **flags: Any) -> Resolved:
    size = {"frames": 9, "height": 64, "width": 96} if "cog" in folder.name else {}
    return resolve(small_run(folder, out, **{"random_weights": True, "steps": 12, **size, **flags}))


def made(at_work: Session, job: Job) -> dict[str, Any]:
    """The report of a job."""
    claimed = claim(job, resume=False)
    assert claimed is not None
    with claimed:
        return make(at_work, job, claimed).report.as_json()


@pytest.mark.parametrize("family", ["hunyuan", "cogvideox"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_so_many_steps_of_each_phase_are_computed(
    case: tuple[dict[str, Any], list[str], set[int]],
    family: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    flags, phases, computed = case
    resolved = settings(request.getfixturevalue(f"{family}_folder"), tmp_path, steps_per_phase=2, **flags)
    pipe = load_pipeline(resolved.config.model, decode=False)
    blocks: list[int] = []
    pipe.transformer.transformer_blocks[0].register_forward_hook(lambda *_: blocks.append(handle.clock.step))
    (job,) = plan(resolved, [PROMPT])
    with session(pipe, resolved, Listener()) as at_work:
        handle = at_work.handle
        report = made(at_work, job)
    assert blocks == sorted(computed)
    assert "forward" not in vars(pipe.transformer)
    assert [step["phase"] for step in report["steps"]] == phases
    assert {step["step"] for step in report["steps"] if not step["estimated"]} == computed
    assert report["estimated"] == {"computed_steps": len(computed), "of": 12, "steps_per_phase": 2}
    assert {call.step for call in handle.engine.calls} == (computed if handle.attached else set())
    check_sums(report)


def check_sums(report: dict[str, Any]) -> None:
    """Every estimate is the median of the computed steps of its phase, of step 0 only if there is no other, and the
    sums are over all steps.
    """
    steps, seconds = report["steps"], report["seconds"]
    for step in steps:
        alike = [s for s in steps if s["phase"] == step["phase"] and not s["estimated"]]
        alike = [s for s in alike if s["step"] > 0] or alike
        for key in ("seconds", "attention", "density") if step["estimated"] else ():
            known = [s[key] for s in alike if s[key] is not None]
            assert step[key] == (statistics.median(known) if known else None)
    assert seconds["denoising"] == pytest.approx(sum(step["seconds"] for step in steps))
    if seconds["attention"] is not None:
        assert seconds["attention"] == pytest.approx(sum(step["attention"] for step in steps))
    assert report["density"] == pytest.approx(statistics.fmean(step["density"] for step in steps))
    assert sum(part.seconds for part in time_parts(from_json(Report, report))) == pytest.approx(seconds["total"])
    assert seconds["total"] >= seconds["denoising"]


def test_a_step_that_gives_masks_is_always_computed() -> None:
    cached, loaded = CACHED_SEARCH, LOAD
    plans = [DENSE, DENSE, SEARCH, SPARSE, SPARSE, cached, SPARSE, cached, loaded, loaded, SEARCH]
    actions = [(plan, 0.8) for plan in plans]
    assert choose_steps(actions, 1) == {0, 1, 2, 3, 5, 7, 8, 9, 10}
    assert choose_steps(actions, 3) == set(range(11))
    assert choose_steps([], 1) == set()


def test_steps_of_another_sparsity_are_of_another_kind() -> None:
    plan = [(SEARCH, 0.5), (SPARSE, 0.5), (SPARSE, 0.5), (CACHED_SEARCH, 0.9), (SPARSE, 0.9), (SPARSE, 0.9)]
    assert choose_steps(plan, 1) == {0, 1, 3, 4}
    assert choose_steps(plan, 1, fresh_lse=True) == {0, 1, 2, 3, 4}


def test_estimates_are_medians_and_what_was_computed_keeps_its_figures() -> None:
    figures = enumerate([(5.0, 1.0), (1.0, 0.2), (2.0, 0.3), (4.0, 0.4), (0.01, None)])
    before = [Step(i, "search" if i == 0 else "skipped", seconds, None, density) for i, (seconds, density) in figures]
    steps = with_estimates(before, [("search", 0.8)] + [("sparse", 0.8)] * 4, {0, 1, 2, 3})
    assert [step.seconds for step in steps] == [5, 1, 2, 4, 2]
    assert [step.estimated for step in steps] == [False] * 4 + [True]
    assert (steps[4].step, steps[4].phase, steps[4].density, steps[4].attention) == (4, "sparse", 0.3, None)


def test_the_start_of_the_run_is_in_no_estimate_unless_nothing_else_was_computed() -> None:
    steps = [Step(i, "dense", seconds, 1.0, 1.0) for i, seconds in enumerate([9.0, 2.0, 3.0, 0.01])]
    assert [step.seconds for step in with_estimates(steps, [("dense", None)] * 4, {0, 1, 2})] == [9, 2, 3, 2.5]
    assert [step.seconds for step in with_estimates(steps, [("dense", None)] * 4, {0})] == [9, 9, 9, 9]


def test_with_as_many_steps_as_there_are_nothing_is_estimated(hunyuan_folder: Path, tmp_path: Path) -> None:
    runs = {}
    for name, number in (("all", 12), ("none", None)):
        flags = {} if number is None else {"steps_per_phase": number}
        resolved = settings(hunyuan_folder, tmp_path / name, search_steps=(4, 8), decode=True, **flags)
        (report,) = make_reports(resolved, Listener())
        assert report["estimated"] is None
        assert not any(step["estimated"] for step in report["steps"])
        runs[name] = (tmp_path / name / report["video"]["file"]).read_bytes(), report["searches"], report["density"]
    assert runs["all"] == runs["none"]


class Fail(Listener):
    def step_done(self, step: int) -> None:
        if step == 6:
            raise RunError("stop")


def test_the_transformer_is_whole_again_after_an_error_and_for_the_next_run(
    hunyuan_folder: Path, tmp_path: Path
) -> None:
    resolved = settings(hunyuan_folder, tmp_path, steps_per_phase=1, search_steps=(4, 8))
    pipe = load_pipeline(resolved.config.model, decode=False)
    (job,) = plan(resolved, [PROMPT])
    with pytest.raises(RunError, match="stop"), session(pipe, resolved, Fail()) as at_work:
        made(at_work, job)
    assert "forward" not in vars(pipe.transformer)
    with session(pipe, resolved, Listener()) as at_work:
        first = made(at_work, job)
        pipe.transformer.__dict__.pop("forward", None)  # as offloading does when a pipeline's call returns
        second = made(at_work, job)
    assert first["estimated"] == second["estimated"] == {"computed_steps": 5, "of": 12, "steps_per_phase": 1}


def test_true_guidance_computes_both_branches_of_a_step(hunyuan_folder: Path, tmp_path: Path) -> None:
    flags = {"true_cfg_scale": 3.0, "negative_prompt": "x", "search_steps": (4, 8)}
    (report,) = make_reports(settings(hunyuan_folder, tmp_path, steps_per_phase=1, **flags), Listener())
    assert report["estimated"]["computed_steps"] == 5
    assert {search["branch"] for search in report["searches"]} == {"cond", "uncond"}
    check_sums(report)


@pytest.fixture(scope="module")
def shown(hunyuan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The report of a command, and what it printed."""
    out = tmp_path_factory.mktemp("shown")
    size = ["--height", "32", "--width", "48", "--frames", "5", "--steps", "6", "--device", "cpu"]
    arguments = ["--random-weights", "--steps-per-phase", "1", "--method", "full", "--prompt", PROMPT]
    result = CliRunner().invoke(
        app, ["generate", "--model", str(hunyuan_folder), *size, *arguments, "--out", str(out)], env={"NO_COLOR": "1"}
    )
    assert result.exit_code == 0, result.output
    (report,) = (json.loads(path.read_text()) for path in out.glob("*.report.json"))
    return report, result.stdout


NOTE = "2 of 6 steps were computed, those at the beginning of each phase (steps_per_phase: 1) and every search"


def test_the_summary_and_the_page_say_that_times_are_estimated(shown: tuple[dict[str, Any], str]) -> None:
    report, printed = shown
    assert f"estimated: {NOTE}" in printed
    text = page(from_json(Report, report), None)
    parsed = read(text)
    assert f"full, dense, estimated: {NOTE}" in "".join(parsed.text)
    assert len(re.findall(r'<div class="estimated" title="step \d, dense: [^"]*\(estimated\)"', text)) == 4
    assert "dense (estimated)" in "".join(parsed.text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"random_weights": False}, "steps_per_phase skips steps, so it makes no video"),
        ({"cache": "pab"}, "steps_per_phase can't be combined with the cache 'pab'"),
        ({"steps_per_phase": 0}, "steps_per_phase must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_estimated_is_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve({"random_weights": True, "steps_per_phase": 2} | flags)


@pytest.mark.parametrize("command", ["visualize", "search-masks"])
def test_commands_that_need_every_step_refuse_it(command: str, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    arguments = ["--prompt", PROMPT, "--out", str(out), "--set", "random_weights=true", "--set", "steps_per_phase=2"]
    result = CliRunner().invoke(app, [command, *arguments])
    assert result.exit_code == 2
    assert f"error: {command} computes every step" in result.stderr
    assert not out.exists()


def test_masks_of_a_file_are_loaded_at_their_steps(hunyuan_folder: Path, tmp_path: Path) -> None:
    flags = small_run(hunyuan_folder, tmp_path, random_weights=True, steps=12, search_steps=(4, 8))
    common = {key: value for key, value in flags.items() if key not in ("out", "search_steps", "prompt")}
    arguments = [part for key, value in common.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    masks = str(tmp_path / "masks.safetensors")
    search = ["search-masks", "--prompt", PROMPT, "--out", masks, "--set", "search_steps=[4, 8]", *arguments]
    result = CliRunner().invoke(app, search)
    assert result.exit_code == 0, result.output
    (report,) = make_reports(resolve(flags | {"masks": masks, "steps_per_phase": 2}), Listener())
    loading = [step["step"] for step in report["steps"] if step["phase"] == "loaded masks"]
    assert loading == [4, 8]
    assert report["estimated"]["computed_steps"] == 7
    check_sums(report)


def test_zeros_have_the_shape_of_what_the_transformer_answers(hunyuan_folder: Path, tmp_path: Path) -> None:
    resolved = settings(hunyuan_folder, tmp_path, steps_per_phase=1, method="full", steps=4)
    pipe = load_pipeline(resolved.config.model, decode=False)
    answers: list[torch.Tensor] = []
    pipe.transformer.register_forward_hook(lambda _module, _args, out: answers.append(out[0]))
    (job,) = plan(resolved, [PROMPT])
    with session(pipe, resolved, Listener()) as at_work:
        made(at_work, job)
    first, second, *others = answers
    assert min(first.abs().max(), second.abs().max()) > 0
    assert len(others) == 2
    for other in others:
        assert (other.shape, other.dtype) == (first.shape, first.dtype)
        assert not other.any()

"""``adaspa generate --plan`` as its users see it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers.utils import logging
from typer.testing import CliRunner, Result

from adaspa_cli.app import app
from adaspa_cli.config.architecture import BUNDLED
from adaspa_cli.forecast import calibration
from adaspa_cli.forecast.calibration import Rates, Sample
from tests.pipelines import PROMPT

RATES = Rates(flop=1e-12, channel=1e-12, dense=1e-12, sparse=1e-12, search=1e-13, seconds=1.0)


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure(_sample: Sample) -> Rates:
        return RATES

    monkeypatch.setattr(calibration, "calibrate", measure)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["generate", "--plan", "--device", "cpu", *arguments])


def test_a_plan_says_what_is_estimated_and_writes_nothing(tmp_path: Path) -> None:
    result = call("--prompt", PROMPT, "--method", "adaspa", "--steps", "6")
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    for said in ("9,216 of video (9 x 32 x 32)", "8 layers of 4 heads of 64", "6: ", "density, estimated"):
        assert said in shown
    for said in ("peak memory, estimated", "denoising, estimated", "attention work, estimated", "cached search"):
        assert said in shown
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_data_too() -> None:
    result = call("--prompt", PROMPT, "--model", "hunyuan", "--seed", "1", "--seed", "2", "--json", "-q")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["video_tokens"], found["videos"], found["method"]) == (118_800, 2, "adaspa-plus")
    assert found["estimated_seconds"]["denoising"] > found["estimated_seconds"]["attention"] > 0
    assert [step["sparsity"] for step in found["steps"]][-1] == 0.95


LONG = " ".join([PROMPT] * 40)


def test_a_plan_names_a_long_prompt_and_may_refuse_it() -> None:
    result = call("--prompt", LONG)
    assert result.exit_code == 0, result.output
    assert "tiny reads 256 tokens of a prompt and drops the rest: '" in " ".join(result.stderr.split())
    assert "drops the rest" not in call("--prompt", PROMPT).stderr
    refused = call("--prompt", LONG, "--strict-prompt", "--height", "256", "--width", "256", "--frames", "33")
    assert refused.exit_code != 0
    assert "error: tiny reads 256 tokens of a prompt" in " ".join(refused.stderr.split())
    assert not refused.stdout


def test_a_plan_reads_the_tokenizers_of_the_hubs_cache_and_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_id = "hunyuanvideo-community/HunyuanVideo"
    cache = tmp_path / "hub" / f"models--{hub_id.replace('/', '--')}"
    snapshot = cache / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    shutil.copy(BUNDLED / "model_index.json", snapshot)
    arguments = ("--model", "hunyuan", "--prompt", LONG)
    assert "drops the rest" not in call(*arguments).stderr
    for part in ("tokenizer", "tokenizer_2"):
        shutil.copytree(BUNDLED / part, snapshot / part)
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "HunyuanVideo reads 256 tokens of a prompt" in " ".join(result.stderr.split())
    assert "drops the rest" not in call(*arguments, "--random-weights").stderr


def test_another_checkpoint_is_planned_by_the_preset_that_it_is_run_with() -> None:
    other = "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v_distilled"
    arguments = (
        "--model",
        "hunyuan1.5-720p",
        "--weights",
        other,
        "--guidance-scale",
        "1",
        "--prompt",
        PROMPT,
        "--json",
    )
    found = json.loads(call(*arguments, "-q").stdout)
    assert (found["model"], found["video_tokens"], found["passes_per_step"]) == (other, 111_600, 1)
    assert found["estimated_memory_bytes"]["weights"] > 30e9
    own = "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v"
    assert f"the sizes are taken to be those of {own}" in found["notes"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no prompt"),
        (("--prompt", PROMPT, "--height", "100"), "height must be a multiple of"),
        (("--prompt", PROMPT, "--model", "org/unknown"), "is not known without a download"),
        (("--prompt", PROMPT, "--offload", "model"), "needs a GPU"),
        (("--prompt", PROMPT, "--masks", "absent"), "cannot read"),
    ],
)
def test_what_a_run_refuses_is_refused(arguments: tuple[str, ...], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_transformers_does_not_warn_of_what_is_not_installed() -> None:
    """It would while it imports the classes of a model that takes pictures."""
    logging.set_verbosity_warning()
    result = call("--prompt", PROMPT, "--model", "wan2.1-i2v-14b", "--random-weights", "-q")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert logging.get_verbosity() == logging.ERROR


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "tiny", "--steps", "1"), "adaspa-plus searches at steps 0 (of 0 to 0): its sparsity is 0.4\n"),
        (("--model", "wan2.1-14b", "--steps", "4"), "steps 0, 1, 2 (of 0 to 3): its sparsity rises from 0.4 to 0.95\n"),
        (("--model", "wan2.2-a14b", "--steps", "4"), "to 0.95; the second transformer begins with a search too\n"),
        (("--model", "wan2.2-a14b", "--steps", "4", "--method", "adaspa"), "; the second transformer begins with a"),
    ],
)
def test_few_steps_are_searched_within_the_run(arguments: tuple[str, ...], said: str) -> None:
    result = call("--prompt", PROMPT, *arguments)
    assert result.exit_code == 0, result.output
    assert said in result.stderr


without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")


@without_gpu
def test_memory_for_a_gpu_is_estimated_where_there_is_none() -> None:
    arguments = ("--prompt", PROMPT, "--model", "hunyuan", "--device", "cuda", "--json", "-q")
    whole, group, fp8 = (
        json.loads(call(*arguments, *more).stdout) for more in ((), ("--offload", "group"), ("--linear", "fp8"))
    )
    assert [found["estimated_seconds"]["denoising"] for found in (whole, group, fp8)] == [None] * 3
    assert "time not predicted: this machine has no GPU" in whole["notes"]
    assert (whole["device"], whole["dtype"], whole["fits"]) == ("cuda", "bfloat16", None)
    weights = [found["estimated_memory_bytes"]["weights"] for found in (group, fp8, whole)]
    assert weights[0] < weights[1] < weights[2]
    assert "--linear fp8 keeps 18.1 GB of weights in main memory" in fp8["notes"]
    assert "measuring" not in call(*arguments[:-2]).stderr


@without_gpu
def test_what_needs_a_gpu_says_how_to_plan_for_one() -> None:
    for flags in (("--offload", "group"), ("--linear", "fp8")):
        result = call("--prompt", PROMPT, "--device", "auto", *flags)
        assert result.exit_code == 2
        assert "--plan --device cuda" in result.output

"""``adaspa generate`` as its users see it: results, messages, exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from adaspa_cli import __version__
from adaspa_cli.app import app
from tests.forked import Forks
from tests.pipelines import small_run

USAGE, FAILED, INTERRUPTED = 2, 1, 130


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No colours, and no bundled Triton interpreter: as on a user's machine."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def call(*arguments: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, list(arguments))


def flags(settings: dict[str, Any]) -> list[str]:
    arguments = []
    for key, value in settings.items():
        name = f"--{key.replace('_', '-')}"
        if key == "search_steps":
            arguments += [name, ",".join(map(str, value))]
        else:
            arguments += [
                part for item in (value if isinstance(value, list) else [value]) for part in (name, str(item))
            ]
    return arguments


@pytest.fixture
def run(hunyuan_folder: Path, tmp_path: Path) -> Any:
    """Generate with a small model into ``tmp_path / "out"``; settings replace the usual ones, None leaves them out."""

    def generate(*arguments: str, **changed: Any) -> Result:
        settings = small_run(hunyuan_folder, tmp_path / "out") | changed
        return call("generate", *flags({k: v for k, v in settings.items() if v is not None}), *arguments)

    return generate


def refused(result: Result, message: str, code: int = USAGE) -> str:
    """Check that a command failed with one line (and at most one hint) on stderr; return stderr."""
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert re.search(message, errors[0]), errors[0]
    assert "Traceback" not in result.output
    assert result.stdout == ""
    after = lines[lines.index(errors[0]) + 1 :]
    assert len(after) <= 1, after
    assert all(line.startswith("  try: ") for line in after), after
    return result.stderr


def no_videos(folder: Path) -> bool:
    return not list(folder.rglob("*"))


def test_a_video_and_its_report_are_made_and_named(run: Any, tmp_path: Path) -> None:
    result = run()
    assert result.exit_code == 0, result.output
    video = tmp_path / "out" / "a-red-circle-moves-left-on-a-blue-background-seed0.mp4"
    assert video.is_file()
    assert video.with_suffix(".report.json").is_file()
    assert "density" in result.stdout
    assert "attention backend: reference" in result.stderr


@pytest.mark.parametrize("method", ["sparse-videogen", "minference", "frame-region"])
def test_other_methods_go_by_their_name(run: Any, method: str) -> None:
    result = run("--json", method=method, height=64, width=96)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)[0]["report"]
    assert report["settings"]["algorithm"] == {"value": method, "origin": f"method preset {method}"}
    assert 0 < report["density"] < 1


def test_with_json_too_it_is_said_where_latents_are(run: Any, tmp_path: Path) -> None:
    result = run("--json", "--no-decode")
    latents = tmp_path / "out" / "a-red-circle-moves-left-on-a-blue-background-seed0.latents.safetensors"
    assert latents.is_file()
    (made,) = json.loads(result.stdout)
    assert (made["result"], made["video"]) == (str(latents), None)


def test_the_path_of_the_video_is_printed_whole(run: Any, tmp_path: Path) -> None:
    """It is what one copies; a pipe has no width that it would have to fit into."""
    result = run()
    assert str(tmp_path / "out" / "a-red-circle-moves-left-on-a-blue-background-seed0.mp4") in result.stdout


def test_json_holds_the_reports(run: Any) -> None:
    result = run("--json", seed=[1, 2])
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert [entry["report"]["seed"] for entry in data] == [1, 2]
    for entry in data:
        assert Path(entry["video"]).is_file()
        assert json.loads(Path(entry["video"]).with_suffix(".report.json").read_text()) == entry["report"]


def test_quiet_says_nothing_but_the_result(run: Any) -> None:
    result = run("--quiet")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "seed0.mp4" in result.stdout


def test_a_file_of_prompts(run: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("# two\na circle\n\na square\n")
    result = run("--json", "--prompts", str(tmp_path / "prompts.txt"), prompt=None)
    made = json.loads(result.stdout)
    assert [entry["report"]["prompt"] for entry in made] == ["a circle", "a square"]
    gallery = Path(made[0]["video"]).with_name("index.html")
    assert f"gallery: {gallery}" in " ".join(result.stderr.split())
    assert all(Path(entry["video"]).name in gallery.read_text(encoding="utf-8") for entry in made)


def test_what_is_said_of_one_of_several_videos_names_it(run: Any) -> None:
    """The error that adaspa-plus estimates is of one video; a single one needs no name."""
    noted = "estimated attention error"
    several = [line for line in run(method="adaspa-plus", seed=[1, 2]).stdout.splitlines() if noted in line]
    assert [line.partition(f": {noted}")[0][-6:] for line in several] == ["-seed1", "-seed2"]
    (alone,) = (line for line in run(method="adaspa-plus", seed=3).stdout.splitlines() if noted in line)
    assert alone.startswith(noted)


def test_a_page_in_the_way_of_a_gallery_is_kept(run: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a circle\n")
    first = run("--json")
    page = Path(json.loads(first.stdout)[0]["video"]).with_name("index.html")
    page.write_text("my site")
    result = run("--prompts", str(tmp_path / "prompts.txt"), prompt=None)
    assert result.exit_code == 0
    assert "no gallery: " in result.stderr
    assert page.read_text() == "my site"


def test_prompts_from_a_pipe_are_read(run: Any) -> None:
    """``--prompts /dev/stdin`` or ``<(command)``: such a file can be read only once."""
    reader, writer = os.pipe()
    os.write(writer, b"a circle\n")
    os.close(writer)
    try:
        result = run("--json", "--prompts", f"/dev/fd/{reader}", prompt=None)
    finally:
        os.close(reader)
    assert result.exit_code == 0, result.output
    assert [entry["report"]["prompt"] for entry in json.loads(result.stdout)] == ["a circle"]


def test_resume_skips_and_says_so(run: Any) -> None:
    first = run("--json")
    second = run("--json", "--resume")
    assert json.loads(second.stdout) == json.loads(first.stdout)
    assert "already complete" in second.stderr


def test_flags_may_come_from_a_file(run: Any, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("steps: 3\nsearch_steps: [1]\nprompt: a green square\n")
    result = run("--json", "--config", str(tmp_path / "run.yaml"), steps=None, search_steps=None, prompt=None)
    report = json.loads(result.stdout)[0]["report"]
    assert report["prompt"] == "a green square"
    assert report["settings"]["steps"] == {"value": 3, "origin": f"file {tmp_path / 'run.yaml'}"}


def test_a_path_below_home_is_reported_where_it_is(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell expands what a file says."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("out: ~/films\n")
    result = run("--json", "--config", str(tmp_path / "run.yaml"), out=None)
    assert list((tmp_path / "films").glob("*.mp4"))
    assert Path(json.loads(result.stdout)[0]["video"]).is_file()


@pytest.mark.parametrize("prompt", ["a [red] circle", "a [/red] circle", "[bold]", "50 % [of: it]"])
def test_brackets_are_text_also_on_a_terminal(run: Any, monkeypatch: pytest.MonkeyPatch, prompt: str) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # shows the progress bar, as a terminal does
    result = run(prompt=[prompt], steps=2, search_steps=(0,))
    assert result.exit_code == 0, result.output
    assert prompt in result.stderr


def test_folders_with_brackets_are_printed_as_they_are(run: Any, tmp_path: Path) -> None:
    result = run(out=tmp_path / "[red]")
    assert result.exit_code == 0
    assert "[red]" in result.stdout


def test_print_config_shows_values_and_origins_and_makes_nothing(run: Any, tmp_path: Path) -> None:
    result = run("--print-config")
    assert result.exit_code == 0
    assert re.search(r"^sparsity: 0\.5 +# flag$", result.stdout, re.MULTILINE)
    assert re.search(r"^probes: 128 +# method preset adaspa-plus$", result.stdout, re.MULTILINE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prompt", ["a red circle", "a [red] circle", "[/bold] 'x': \"y\" # z", "ein Kreis 🟢"])
def test_print_config_can_be_given_back(run: Any, tmp_path: Path, prompt: str) -> None:
    shown = run("--print-config", prompt=[prompt], seed=[1, 2])
    (tmp_path / "again.yaml").write_text(shown.stdout, encoding="utf-8")
    again = call("generate", "--config", str(tmp_path / "again.yaml"), "--print-config", "--json")
    assert again.exit_code == 0, again.output
    values = {key: setting["value"] for key, setting in json.loads(again.stdout).items()}
    direct = json.loads(run("--print-config", "--json", prompt=[prompt], seed=[1, 2]).stdout)
    assert values == {key: setting["value"] for key, setting in direct.items()}
    assert values["prompt"] == [prompt]


def test_print_config_as_json_carries_origins(run: Any) -> None:
    data = json.loads(run("--print-config", "--json").stdout)
    assert data["sparsity"] == {"value": 0.5, "origin": "flag"}
    assert data["probes"] == {"value": 128, "origin": "method preset adaspa-plus"}


def test_the_method_is_adaspa_plus_unless_masks_or_a_method_are_named(tmp_path: Path) -> None:
    def method(*flags: str) -> dict[str, str]:
        shown = call("generate", "--prompt", "a cube", "--print-config", "--json", *flags)
        assert shown.exit_code == 0, shown.output
        return json.loads(shown.stdout)["method"]

    (tmp_path / "own.yaml").write_text("method: frame-region\n", encoding="utf-8")
    assert method() == {"value": "adaspa-plus", "origin": "default"}
    assert method("--masks", "masks.safetensors") == {"value": "adaspa", "origin": "default"}
    assert method("--config", str(tmp_path / "own.yaml"))["value"] == "frame-region"
    with_masks = method("--masks", "masks.safetensors", "--method", "adaspa-plus", "--sparsity", "0.9")
    assert with_masks["value"] == "adaspa-plus"


def test_a_scaled_schedule_is_told(run: Any) -> None:
    result = run(search_steps=None)
    assert "search steps [10, 30] scaled to [0, 2], of steps 0 to 3" in result.stderr


def test_search_steps_do_not_matter_to_dense_attention(run: Any) -> None:
    result = run(method="full", search_steps=(10, 30))
    assert result.exit_code == 0, result.output


def test_version_and_help() -> None:
    assert call("--version").stdout == f"adaspa {__version__}\n"
    for arguments in (["--help"], ["-h"]):
        result = call(*arguments)
        assert result.exit_code == 0
        assert "generate" in result.stdout
    result = call("generate", "--help")
    assert result.exit_code == 0
    assert "--sparsity" in result.stdout
    assert "Example" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["generate", "--help"], 0),
        (["generate", "--print-config"], 0),
        (["search-masks", "--help"], 0),
        (["search-masks", "--prompt", "x", "--out", "x.safetensors", "--method", "full"], USAGE),
        (["masks", "compare", "--help"], 0),
        (["generate", "--sparsity", "x"], USAGE),
        (["generate", "--no-such-flag"], USAGE),
        (["generate", "--prompt", "x", "--sparsity", "1.5"], USAGE),
        (["generate", "--prompt", "x", "--model", "tny"], USAGE),
        (["generate", "--prompt", " "], USAGE),
        (["generate"], USAGE),
    ],
)
def test_help_and_wrong_arguments_import_nothing_heavy(light: Forks, arguments: list[str], code: int) -> None:
    """torch and diffusers take seconds to import."""
    done = light.run(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "hunyuann"}, "unknown model 'hunyuann'; did you mean 'hunyuan'"),
        ({"method": "adspa"}, "unknown method 'adspa'; did you mean 'adaspa'"),
        ({"sparsity": 1}, r"sparsity must lie in \[0, 1\), got 1.0"),
        ({"sparsity": -0.5}, r"sparsity must lie in \[0, 1\), got -0.5"),
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"search_steps": (1, 4)}, "search step 4 is beyond the last step, which is 3"),
        ({"search_steps": ("x",)}, "comma-separated whole numbers, got 'x'"),
        ({"search_steps": (-1,)}, "search_steps must be one or more steps, 0 or higher"),
        ({"frames": 6}, r"4k \+ 1 frames, got 6"),
        ({"height": 40}, "height must be a multiple of 16, got 40"),
        ({"width": 50}, "width must be a multiple of 16, got 50"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"fps": 0}, "fps must be at least 1"),
        ({"prompt": [""]}, "a prompt is empty"),
        ({"prompt": ["a circle", "  "]}, "a prompt is empty"),
        ({"prompt": None}, "no prompt was given"),
        ({"seed": -1}, "seed must be one or more numbers from 0 to"),
        ({"seed": 2**70}, "seed"),
        ({"dtype": "float8"}, "dtype 'float8' is unknown"),
        ({"device": "gpu"}, "device 'gpu' is unknown"),
        ({"device": "cuda:97"}, "--device cuda:97: this machine has"),
        ({"attention_backend": "tritn"}, "attention_backend 'tritn' is unknown; did you mean 'triton'"),
        ({"attention_backend": "triton"}, "attention backend 'triton' cannot run on cpu"),
        ({"offload": "model"}, "--offload model needs a GPU"),
        ({"true_cfg_scale": 2}, "needs a negative prompt"),
        ({"model": "/no/such/folder"}, "/no/such/folder does not exist"),
        ({"model": "nobody/no-such-model"}, "cannot fetch nobody/no-such-model"),
        ({"prompts": "/no/such/file"}, "cannot read prompts from /no/such/file: No such file"),
        ({"config": "/no/such/file"}, "cannot read /no/such/file: No such file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Any, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    refused(run(**changed), message)
    assert no_videos(tmp_path)


def test_an_unknown_key_in_a_file_names_the_nearest(run: Any, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("sparsty: 0.5\n")
    refused(run(config=tmp_path / "run.yaml"), r"unknown key 'sparsty' in .*run\.yaml; did you mean 'sparsity'\?")


def test_an_output_folder_that_cannot_be_written(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    stderr = refused(run(out=tmp_path / "file" / "videos"), "cannot write to .*is not a folder")
    assert "--out" in stderr
    refused(run(out=tmp_path / "file"), "cannot write to .*file: ")
    assert (tmp_path / "file").read_text() == "content"


def test_a_corrupt_checkpoint(hunyuan_folder: Path, run: Any, tmp_path: Path) -> None:
    import shutil

    broken = shutil.copytree(hunyuan_folder, tmp_path / "broken")
    (path,) = (broken / "transformer").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    refused(run(model=broken), re.escape(str(broken)))


@pytest.mark.parametrize("arguments", [["--sparsity", "x"], ["--no-such-flag"], ["--steps"], ["surplus"]])
def test_arguments_that_cannot_be_parsed(run: Any, tmp_path: Path, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == USAGE
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert no_videos(tmp_path)


def test_errors_are_json_too(run: Any) -> None:
    result = run("--json", sparsity=2)
    assert result.exit_code == USAGE
    error = json.loads(result.stdout)
    assert error["error"] == "sparsity must lie in [0, 1), got 2.0"
    assert error["hint"]


def test_brackets_in_messages_are_text(run: Any) -> None:
    refused(run(model="[red]/x y"), re.escape("unknown model '[red]/x y'"))


def test_a_failure_that_nobody_foresaw_is_one_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("adaspa_cli.commands.progress.ProgressObserver.step_done", fail)
    stderr = refused(run(), "ZeroDivisionError: two lines", FAILED)
    assert "--debug" in stderr


def test_debug_shows_the_traceback_and_keeps_the_exit_code() -> None:
    command = [sys.executable, "-m", "adaspa_cli", "generate", "--sparsity", "2", "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr
    assert "sparsity must lie in" in done.stderr
    assert done.returncode == USAGE


def test_ctrl_c_keeps_what_is_complete(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def press(_self: Any, step: int) -> None:
        steps.append(step)
        if len(steps) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr("adaspa_cli.commands.progress.ProgressObserver.step_done", press)
    result = run(seed=[1, 2])
    assert result.exit_code == INTERRUPTED
    assert "interrupted" in result.stderr
    assert "--resume" in result.stderr
    assert "Traceback" not in result.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    stem = "a-red-circle-moves-left-on-a-blue-background-seed1"
    assert names == {f"{stem}.mp4", f"{stem}.report.json", f"{stem}.report.html"}


def test_a_share_says_how_much_of_the_run_is_there(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    first = run("--seed", "1", "--seed", "2", "--shard", "auto")
    assert first.exit_code == 0, first.output
    assert "shard 1/2: 1 of 1 videos are complete, of the whole run 1 of 2" in first.stderr
    second = run("--seed", "1", "--seed", "2", "--shard", "2/2", "--json")
    assert len(json.loads(second.stdout)) == 1
    assert "of the whole run 2 of 2" in second.stderr
    assert len(json.loads(run("--seed", "1", "--seed", "2", "--resume", "--json").stdout)) == 2
    assert json.loads(run("--seed", "1", "--shard", "2/2", "--json").stdout) == []
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 2


def test_a_wrong_share_is_refused(run: Any, tmp_path: Path) -> None:
    refused(run("--shard", "5/4"), "--shard takes I/N, I from 1 to N, or auto, got '5/4'")
    assert no_videos(tmp_path)


def test_ray_is_refused_where_it_cannot_be_used(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(run("--ray-workers", "2"), "--ray-workers needs --ray")
    refused(run("--ray", "local", "--shard", "1/2"), "--ray distributes the videos itself")
    refused(run("--ray", "local", device="cuda:1"), "--ray assigns a GPU to each worker")
    refused(run("--ray", "local", "--gpus", "2"), "each Ray worker makes a video on one GPU")
    monkeypatch.setattr("adaspa_cli.commands.generate.find_spec", lambda _name: None)
    assert "pip install 'adaspa[ray]'" in refused(run("--ray", "local"), "--ray needs Ray, which is not installed")
    assert no_videos(tmp_path)


def test_the_last_share_of_a_search_writes_the_file(hunyuan_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.safetensors"
    given = ["--model", str(hunyuan_folder), "--prompt", "a circle", "--seed", "1", "--seed", "2", "--device", "cpu"]
    given += ["--height", "32", "--width", "48", "--frames", "5", "--steps", "4", "--set", "block_size=16"]
    first = call("search-masks", *given, "--out", str(out), "--shard", "2/2", "--json")
    assert json.loads(first.stdout) == {"file": None, "shard": "2/2"}, first.output
    last = call("search-masks", *given, "--out", str(out), "--shard", "1/2", "--json")
    assert json.loads(last.stdout)["videos"] == 2, last.output
    assert out.is_file()

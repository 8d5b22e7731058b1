"""``adaspa search-masks``, ``generate --masks`` and ``adaspa masks`` as their users see them."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from adaspa_cli.app import app
from adaspa_cli.errors import ConfigError
from adaspa_cli.jobs import search_masks as job
from adaspa_cli.maskfiles import MethodFacts
from tests.mask_files import LAYOUT, small_file
from tests.pipelines import PROMPT, small_run

USAGE, CORRUPT, INTERRUPTED = 2, 1, 130
SIZE = {"height": 64, "width": 96, "frames": 9}


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def search(hunyuan_folder: Path, tmp_path: Path) -> Any:
    """Search with a small model into ``tmp_path / "masks.safetensors"``."""

    def run(*arguments: str, out: str = "masks.safetensors") -> Result:
        settings = small_run(hunyuan_folder, tmp_path, **SIZE)
        flags = ["search-masks", "--out", str(tmp_path / out), "--prompt", PROMPT, "--search-steps", "1,3"]
        named = ("model", "height", "width", "frames", "steps", "sparsity", "device")
        flags += [part for key in named for part in (f"--{key}", str(settings[key]))]
        for key in ("block_size", "dtype", "attention_backend"):
            flags += ["--set", f"{key}={settings[key]}"]
        return call(*flags, *arguments)

    return run


@pytest.fixture
def generate(hunyuan_folder: Path, tmp_path: Path) -> Any:
    """Generate with the same model."""

    def run(*arguments: str, **changed: Any) -> Result:
        settings = small_run(hunyuan_folder, tmp_path / "out", **SIZE) | {"prompt": PROMPT, "search_steps": "1,3"}
        flags = [part for k, v in (settings | changed).items() for part in (f"--{k.replace('_', '-')}", str(v))]
        return call("generate", *flags, *arguments)

    return run


def refused(result: Result, message: str, code: int = USAGE) -> None:
    assert result.exit_code == code, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert message in errors[0]
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_search_then_generate(search: Any, generate: Any, tmp_path: Path) -> None:
    file = tmp_path / "masks.safetensors"
    result = search()
    assert result.exit_code == 0, result.output
    assert str(file) in result.stdout
    assert "4 layers, 2 heads, steps 1, 3 (of 0 to 3)" in result.stdout
    assert "the masks will take about" in result.stderr
    made = generate("--masks", str(file), "--masks-from-start", "--json")
    assert made.exit_code == 0, made.output
    report = json.loads(made.stdout)[0]["report"]
    assert [step["phase"] for step in report["steps"]] == ["loaded masks", "sparse", "sparse", "loaded masks"]
    assert report["settings"]["masks"] == {"value": str(file), "origin": "flag"}


def test_the_recall_is_told(search: Any, generate: Any, tmp_path: Path) -> None:
    search("--seed", "3")
    file = str(tmp_path / "masks.safetensors")
    result = generate("--masks", file, "--masks-min-recall", "0.99")
    assert "masks of masks.safetensors: recall below 0.99 in 4 of 4 masks, searched again" in result.stdout
    result = generate("--masks", file, "--masks-min-recall", "0.99", "--masks-fallback", "warn")
    assert "below 0.99 in 4 of 4 masks, used anyway" in result.stdout
    result = generate("--masks", file, "--masks-min-recall", "0.1")
    assert "recall below 0.1 in 0 of 4 masks\n" in result.stdout


def test_search_as_json(search: Any, tmp_path: Path) -> None:
    result = search("--json", "--quiet", "--prompt", "a star", "--first-step-only", "--keep-ranking", "0.8")
    assert result.stderr == ""
    data = json.loads(result.stdout)
    assert data["file"] == str(tmp_path / "masks.safetensors")
    assert data["bytes"] == (tmp_path / "masks.safetensors").stat().st_size
    assert (data["search_steps"], data["videos"]) == ([1], 2)
    assert data["seconds"] > 0
    assert data["peak_memory"]["process_bytes"] > 0
    assert 0 < data["density"] < 1
    assert 0 < data["recall"] <= 1


def test_settings_that_have_no_flag(search: Any, tmp_path: Path) -> None:
    refused(search("--set", "block_sise=8"), "unknown key 'block_sise'")
    refused(search("--set", "block_size"), "--set takes KEY=VALUE")
    assert search("--set", "head_adaptive=false").exit_code == 0
    info = json.loads(call("masks", "info", str(tmp_path / "masks.safetensors"), "--json").stdout)
    assert info["method"]["head_adaptive"] is False


def test_wrong_use_of_search(search: Any, tmp_path: Path) -> None:
    refused(search("--method", "full"), "'full' does not search for masks")
    refused(search("--keep-ranking", "0.1"), "keep_ranking must lie in")
    refused(search(out="masks.pt"), "the name of a mask file ends in .safetensors")
    refused(search(out="."), "is a folder")
    refused(search("--prompt", " "), "a prompt is empty")
    refused(search("--search-steps", "4"), "search step 4 is beyond the last step")
    assert not list(tmp_path.iterdir())
    (tmp_path / "masks.safetensors").write_bytes(b"")
    refused(search(), "already exists")


def test_interrupted_and_resumed(search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job.MaskParts, "video_done", interrupted)
        result = search()
    assert result.exit_code == INTERRUPTED
    assert "no mask file was written, and --resume continues" in result.stderr
    assert not list(tmp_path.glob("*.safetensors"))
    refused(search(), "an unfinished search is in")
    assert search("--resume").exit_code == 0
    assert "already complete" in search("--resume").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--masks-from-start"], "masks_from_start needs a mask file"),
        (["--masks-min-recall", "0.8"], "masks_min_recall needs a mask file"),
        (["--masks", "m.safetensors", "--masks-min-recall", "80"], "masks_min_recall must lie in (0, 1], got 80"),
        (["--masks", "m.safetensors", "--masks-fallback", "sparse"], "masks_fallback 'sparse' is unknown"),
        (["--masks", "m.safetensors", "--method", "full"], "masks can't be used with 'full'"),
        (["--masks", "m.safetensors", "--method", "minference"], "masks can't be used with 'minference'"),
        (["--masks", "none.safetensors"], "cannot read masks from none.safetensors: No such file"),
    ],
)
def test_wrong_use_of_masks(generate: Any, tmp_path: Path, arguments: list[str], message: str) -> None:
    refused(generate(*arguments), message)
    assert not list(tmp_path.iterdir())


def test_a_mask_file_that_does_not_fit_or_is_corrupt_makes_no_video(search: Any, generate: Any, tmp_path: Path) -> None:
    search()
    file = tmp_path / "masks.safetensors"
    refused(generate("--masks", str(file), sparsity=0.6), "sparsity is 0.5 in the file and 0.6 in the run")
    refused(generate("--masks", str(file), frames=13), "frames is 3 in the file and 4 in the run")
    file.write_bytes(file.read_bytes()[:-1])
    refused(generate("--masks", str(file)), "is truncated")
    assert not list(tmp_path.rglob("*.mp4"))


def test_info(tmp_path: Path) -> None:
    file = small_file(tmp_path / "masks.safetensors", ranked=5)
    result = call("masks", "info", str(file.path))
    assert result.exit_code == 0, result.output
    for text in (
        "tiny (HunyuanVideoPipeline",
        "2 layers, 2 heads, cond, uncond",
        "3 x 4 x 8, text last",
        "grüner Stern",
    ):
        assert text in result.stdout
    data = json.loads(call("masks", "info", str(file.path), "--json").stdout)
    assert data["checksum"] == file.checksum
    assert (data["layers"], data["ranked"], data["search_steps"]) == (2, 5, [2, 8])
    assert len(data["entries"]) == 8
    assert set(data["entries"][0]) == {"layer", "branch", "step", "density", "recall"}
    refused(call("masks", "info", str(tmp_path / "none")), "No such file")


def test_verify(tmp_path: Path) -> None:
    whole = small_file(tmp_path / "whole.safetensors").path
    broken = tmp_path / "broken.safetensors"
    content = bytearray(whole.read_bytes())
    content[-3] ^= 4
    broken.write_bytes(content)
    result = call("masks", "verify", str(whole))
    assert (result.exit_code, result.stdout) == (0, f"{whole}: whole\n")
    result = call("masks", "verify", str(whole), str(broken))
    assert result.exit_code == CORRUPT
    assert f"{whole}: whole\n" in result.stdout
    assert "broken.safetensors is corrupt: the checksum does not fit the bits of layer 1" in result.stdout
    result = call("masks", "verify", str(whole), str(broken), "--json")
    assert result.exit_code == CORRUPT
    assert [row["whole"] for row in json.loads(result.stdout)] == [True, False]
    refused(call("masks", "verify", str(tmp_path / "none")), "No such file or directory")


def test_compare(tmp_path: Path) -> None:
    first = small_file(tmp_path / "a.safetensors", keeps_sums=True).path
    second = small_file(tmp_path / "b.safetensors", seed=1).path
    result = call("masks", "compare", str(first), str(second), "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["masks"]
    assert len(rows) == 8
    assert all(0 < value < 1 for row in rows for value in row["iou"])
    assert rows[0]["mutual_recall"]["first_on_second"] is None
    assert len(rows[0]["mutual_recall"]["second_on_first"]) == 2
    lines = call("masks", "compare", str(first), str(second)).stdout.splitlines()
    assert len(lines) == 1 + 8
    lines = call("masks", "compare", str(first), str(first), "--steps", "2,8", "--heads").stdout.splitlines()
    assert len(lines) == 1 + 4 * 2
    refused(call("masks", "compare", str(first), str(first), "--steps", "2"), "--steps takes two steps")
    refused(call("masks", "compare", str(first), str(first), "--steps", "2,9"), "nothing to compare")


def test_what_masks_were_chosen_by_is_told(tmp_path: Path) -> None:
    facts = MethodFacts("adaspa", 0.75, False, True, "output-error", True)
    files = [small_file(tmp_path / "mass.safetensors"), small_file(tmp_path / "layer.safetensors", method=facts)]
    for file, words in zip(files, ("mass", "output-error, one budget for a layer"), strict=True):
        assert re.search(rf"chosen by +{words} *\n", call("masks", "info", str(file.path)).stdout)
    told = json.loads(call("masks", "info", str(files[1].path), "--json").stdout)["method"]
    assert (told["selection"], told["layer_budget"]) == ("output-error", True)


def test_token_orders_are_told(tmp_path: Path) -> None:
    raster = small_file(tmp_path / "a.safetensors").path
    hilbert = small_file(tmp_path / "b.safetensors", layout=dataclasses.replace(LAYOUT, order="hilbert")).path
    for file, order in ((raster, "raster"), (hilbert, "hilbert")):
        assert re.search(rf"token order +{order}", call("masks", "info", str(file)).stdout)
        assert json.loads(call("masks", "info", str(file), "--json").stdout)["layout"]["order"] == order
        assert call("masks", "verify", str(file)).exit_code == 0
    result = call("masks", "compare", str(raster), str(hilbert))
    assert "token orders are raster and hilbert: IoU counts pairs of tokens" in result.stderr
    assert len(result.stdout.splitlines()) == 1 + 8
    assert "token orders" not in call("masks", "compare", str(hilbert), str(hilbert)).stderr


def test_help_names_the_commands() -> None:
    assert "search-masks" in call("--help").stdout
    for name in ("info", "verify", "compare", "plot"):
        assert name in call("masks", "--help").stdout


def test_settings_are_checked_in_python_too() -> None:
    from adaspa_cli.config.mask_file import MaskFileConfig

    with pytest.raises(ConfigError, match="needs a mask file"):
        MaskFileConfig(masks_from_start=True)

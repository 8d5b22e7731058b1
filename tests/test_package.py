"""The built wheel works in an environment of its own, from a folder that is not the checkout."""

import json
import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.pipelines import hunyuan_video, save

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of executables of a fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    # The dependencies are borrowed from the running environment. A path in a .pth file brings no .pth files of that
    # path with it, so an editable install of adaspa there stays out of sight.
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(_site_packages()) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    return environment / "bin"


def _site_packages() -> list[str]:
    extra = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [
        *site.getsitepackages(),
        *(path for path in extra if path and not Path(path).resolve().is_relative_to(ROOT)),
    ]


def _run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [installed / "adaspa", *arguments], cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )


def _environment() -> dict[str, str]:
    """Without the path that would show the checkout's packages."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def test_the_wheel_answers_help_and_holds_the_presets(installed: Path, tmp_path: Path) -> None:
    done = _run(installed, tmp_path, "--help")
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout
    where = "import adaspa_cli, adaspa_kernels; print(adaspa_cli.__file__, adaspa_kernels.__file__)"
    command = [installed / "python", "-c", where]
    python = subprocess.run(command, cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=True)
    assert python.stdout.count(str(installed.parent)) == 2
    assert [(Path(place).parent / "py.typed").is_file() for place in python.stdout.split()] == [True] * 2
    shown = _run(installed, tmp_path, "generate", "--model", "fasthunyuan", "--print-config", "--json")
    assert json.loads(shown.stdout)["flow_shift"] == {"value": 17.0, "origin": "model preset fasthunyuan"}


def test_the_wheel_holds_benches_prompts_and_the_page(installed: Path, tmp_path: Path) -> None:
    done = _run(installed, tmp_path, "bench", "--preset", "tiny-full", "--rows", "full,adaspa", "--plan", "--json")
    assert done.returncode == 0, done.stderr
    assert [row["runs"] for row in json.loads(done.stdout)] == [96, 96]
    page = (
        "from importlib.resources import files; print(files('adaspa_cli.bench').joinpath('page.html.j2').read_text(), "
        "*(files('adaspa_cli.report').joinpath(f'player.{kind}').read_text() for kind in ('html.j2', 'css', 'js')))"
    )
    command = [installed / "python", "-c", page]
    shown = subprocess.run(command, cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=True)
    assert "<!DOCTYPE html>" in shown.stdout


def test_the_wheel_generates_from_a_local_folder(installed: Path, tmp_path: Path) -> None:
    model = save(hunyuan_video(), tmp_path / "model")
    size = ["--height", "64", "--width", "96", "--frames", "9", "--steps", "3", "--search-steps", "1"]
    done = _run(installed, tmp_path, "generate", "--model", str(model), "--prompt", "a red circle", *size, "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert (tmp_path / result["video"]).stat().st_size > 1000
    assert [step["phase"] for step in result["report"]["steps"]] == ["search", "cached search", "cached search"]


def test_the_wheel_generates_with_the_bundled_model(installed: Path, tmp_path: Path) -> None:
    size = ["--height", "96", "--width", "96", "--frames", "9", "--steps", "3"]
    done = _run(installed, tmp_path, "generate", "--prompt", "a red circle", *size, "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert result["report"]["model"]["name"] == "tiny"
    assert (tmp_path / result["video"]).exists()
    assert _run(installed, tmp_path, "gallery", "videos").stdout.startswith("videos/index.html\n1 video\n")

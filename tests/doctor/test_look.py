"""What is found on the machine that runs the tests, and on machines with something broken."""

import json
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from adaspa_cli.app import app
from adaspa_cli.config.catalogue import entry_of
from adaspa_cli.doctor import look, probe, requirements
from adaspa_cli.doctor.facts import Folder, Library
from adaspa_cli.doctor.requirements import extras, installed, libraries


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules are found before all others, also by the process that is asked."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_library_that_cannot_be_imported(broken: Path) -> None:
    (broken / "torch.py").write_text("raise ImportError('libcudart.so.12: no such file')", encoding="utf-8")
    (broken / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms')", encoding="utf-8")
    found = probe.probe("auto")
    assert found.errors["torch"] == "ImportError: libcudart.so.12: no such file"
    assert found.errors["torchvision"] == "RuntimeError: operator torchvision::nms"
    assert found.died is None
    assert found.device is None


def test_a_library_that_ends_the_process(broken: Path) -> None:
    (broken / "torch.py").write_text("import os; os.abort()", encoding="utf-8")
    assert probe.probe("auto").died == "it was killed by signal 6, at import torch"


def test_the_command_says_what_is_broken(broken: Path, tmp_path: Path) -> None:
    (broken / "torch.py").write_text("raise ImportError('libcudart.so.12')", encoding="utf-8")
    out = ["--out", str(tmp_path / "videos")]
    result = CliRunner().invoke(app, ["doctor", *out])
    assert result.exit_code == 1
    assert "cannot be imported: ImportError: libcudart.so.12" in result.stdout
    assert "Traceback" not in result.output
    found = json.loads(CliRunner().invoke(app, ["doctor", "--json", *out]).stdout)
    assert found["problems"] >= 1
    assert {"topic", "status", "name", "text", "mend"} == found["findings"][0].keys()
    assert not (tmp_path / "videos").exists()


def test_this_machine(tmp_path: Path) -> None:
    """In this process, which has torch already."""
    file = tmp_path / "found"
    probe.main(str(file), "cpu")
    found = probe.read(file.read_text(encoding="utf-8"), None)
    assert found.errors.keys() <= {"torchvision"}
    assert (found.device, found.lacking) == ("cpu", ())
    assert found.fp8_problem is not None
    kernels = {one.backend: one for one in found.kernels}
    assert kernels.keys() == {"triton", "cpu", "reference"}
    assert kernels["cpu"].problem is None
    assert kernels["cpu"].runs is not None


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "found"
    probe.main(str(file), "cuda:99")
    found = probe.read(file.read_text(encoding="utf-8"), None)
    assert found.device is None
    assert "cuda:99" in str(found.device_problem)


def test_wrong_flags_are_refused() -> None:
    for arguments, said in ((["--model", "hunyuann"], "did you mean 'hunyuan'"), (["--device", "gpu"], "is unknown")):
        result = CliRunner().invoke(app, ["doctor", *arguments])
        assert result.exit_code == 2
        assert said in result.stderr


def test_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for name, files in {
        "hunyuanvideo-community--HunyuanVideo": (
            "snapshots/1/model_index.json",
            "snapshots/1/transformer/a.safetensors",
        ),
        "Wan-AI--Wan2.1-T2V-1.3B-Diffusers": ("snapshots/1/model_index.json", "blobs/abc.incomplete"),
        "zai-org--CogVideoX-2b": ("snapshots/1/model_index.json",),
    }.items():
        for file in files:
            path = tmp_path / f"models--{name}" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    found = look.look_at_hub()
    assert found.complete == ("hunyuan",)
    assert found.begun == ("cogvideox-2b", "wan2.1-1.3b")
    assert found.token
    assert "hf_secret" not in repr(found)


def test_ffmpeg_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert look.look_at_ffmpeg().problem is None
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    assert look.look_at_ffmpeg().problem is not None


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert look.look_at_folder(str(tmp_path / "file" / "videos")).problem is not None
    there = look.look_at_folder(str(tmp_path / "videos"))
    assert isinstance(there, Folder)
    assert there.free


@pytest.mark.parametrize("name", ["hunyuan", "cogvideox-2b"])  # the latter's own dtype is float16
def test_a_model_with_layers_in_fp8_needs_less(name: str) -> None:
    whole, fp8 = (look.model_facts(entry_of(name), linear).memory for linear in (None, "fp8"))
    assert list(whole) == ["none", "model", "group"]
    assert list(fp8) == ["none", "model"]  # group doesn't go with it
    assert (fp8["none"] or 0) < (whole["none"] or 0)
    assert (fp8["model"] or 0) <= (whole["model"] or 0)  # a text encoder may be larger than the transformer


def test_requirements() -> None:
    assert {"torch", "diffusers", "typer"} <= {library.name for library in libraries()}
    assert {"lora", "quant", "ray"} <= {extra.name for extra in extras()}
    assert "dev" not in {extra.name for extra in extras()}
    assert installed(Requirement("no-such-package-anywhere")) == Library("no-such-package-anywhere", None)
    assert installed(Requirement("rich<1")).needs == "<1"


def test_requirements_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which has no pyproject.toml beside it, but metadata."""
    lines = [
        "rich>=13",
        "peft>=0.17; extra == 'lora'",
        "torch>=2; sys_platform == 'none'",
        "adaspa[lora]; extra == 'dev'",
    ]
    names = Message()
    names["Provides-Extra"] = "lora"
    names["Provides-Extra"] = "dev"
    monkeypatch.setattr(requirements, "presets_root", lambda: tmp_path / "configs")
    monkeypatch.setattr(requirements.importlib.metadata, "requires", lambda _name: lines)
    monkeypatch.setattr(requirements.importlib.metadata, "metadata", lambda _name: names)
    assert [library.name for library in libraries()] == ["rich"]
    assert [(extra.name, [library.name for library in extra.libraries]) for extra in extras()] == [("lora", ["peft"])]


def test_a_line_that_is_broken_off_is_passed_over() -> None:
    found = probe.read('{"begins": "import torch"}\n{"cuda": "12.8"}\n{"gpus": [{"na', "it was killed by signal 9")
    assert found.cuda == "12.8"
    assert found.died == "it was killed by signal 9, at import torch"

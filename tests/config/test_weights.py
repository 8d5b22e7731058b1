"""Checkpoints that no memory here can hold are refused before the hub is asked for them."""

import dataclasses
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adaspa_cli.app import app
from adaspa_cli.config import devices, model_source, resolve
from adaspa_cli.config.weights import check_weights_fit
from adaspa_cli.errors import OutOfMemoryError

GB = 10**9
RUN = ("generate", "--model", "hunyuan", "--device", "cpu", "--prompt", "x")


@pytest.fixture
def laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 16 GB, where nobody may ask the hub."""

    def asked(weights: str) -> None:
        raise AssertionError(weights)

    monkeypatch.setattr(devices, "machine_memory", lambda: (8 * GB, 16 * GB))
    monkeypatch.setattr(model_source, "check_available", asked)


@pytest.mark.usefixtures("laptop")
def test_weights_beyond_the_machine_are_refused_before_the_hub_is_asked(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*RUN, "--out", str(tmp_path / "videos")])
    assert done.exit_code == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: the weights of hunyuanvideo-community/HunyuanVideo need about 41 GB of memory, ")
    assert error.endswith(" and this machine has 16 GB")
    assert all(word in hint for word in ("--offload group", "adaspa models", "--plan"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("offload", "gigabytes"), [("none", 41), ("model", 26), ("group", 1)])
def test_a_gpu_must_hold_what_offloading_leaves_on_it(offload: str, gigabytes: int) -> None:
    model = resolve({"model": "hunyuan", "offload": offload}).config.model
    with pytest.raises(OutOfMemoryError, match="and the GPU has"):
        check_weights_fit(model, "cuda", (gigabytes - 1) * GB)
    check_weights_fit(model, "cuda", (gigabytes + 1) * GB)


@pytest.mark.parametrize(("offload", "gigabytes"), [("none", 32), ("model", 17)])
def test_layers_in_fp8_need_a_byte_a_weight(offload: str, gigabytes: int) -> None:
    model = resolve({"model": "hunyuan", "offload": offload}).config.model
    with pytest.raises(OutOfMemoryError, match=f"about {gigabytes} GB of memory, and the GPU has") as refused:
        check_weights_fit(model, "cuda", (gigabytes - 1) * GB, linear="fp8")
    check_weights_fit(model, "cuda", (gigabytes + 1) * GB, linear="fp8")
    hint = refused.value.hint or ""
    assert hint.startswith("--offload model, or" if offload == "none" else "without --linear fp8 --offload group")


def test_main_memory_must_hold_them_twice_if_they_are_offloaded() -> None:
    model = resolve({"model": "hunyuan", "offload": "model"}).config.model
    check_weights_fit(model, "cuda", 80 * GB, 48 * GB)
    with pytest.raises(OutOfMemoryError, match="in main memory: about 50 GB"):
        check_weights_fit(model, "cuda", 80 * GB, 48 * GB, "fp8")
    check_weights_fit(model, "cuda", 80 * GB, 52 * GB, "fp8")


def test_random_weights_are_refused_before_they_are_built() -> None:
    """As by the bench `gain` on a laptop, which would run out of memory while it builds them."""
    model = resolve({"model": "hunyuan", "random_weights": True}).config.model
    with pytest.raises(OutOfMemoryError, match="need about 26 GB of memory, and this machine has 16 GB") as refused:
        check_weights_fit(model, "cpu", 16 * GB)
    assert (refused.value.hint or "").startswith("--layers N")


@pytest.mark.parametrize("offload", ["model", "group"])
def test_main_memory_must_hold_what_offloading_keeps_there(offload: str) -> None:
    model = resolve({"model": "wan2.2-a14b", "offload": offload}).config.model
    said = f"--offload {offload} keeps the weights of .* in main memory: about 69 GB, and this machine has 64 GB"
    with pytest.raises(OutOfMemoryError, match=said):
        check_weights_fit(model, "cuda", 80 * GB, 64 * GB)
    check_weights_fit(dataclasses.replace(model, weights_dtype="fp8"), "cuda", 80 * GB, 64 * GB)
    check_weights_fit(model, "cuda", 80 * GB, 72 * GB)
    check_weights_fit(dataclasses.replace(model, offload="none"), "cuda", 80 * GB, 64 * GB)


def test_nothing_is_refused_that_is_not_known_to_be_too_large(tmp_path: Path) -> None:
    model = resolve({"model": "hunyuan"}).config.model
    check_weights_fit(model, "cpu", None)
    check_weights_fit(resolve({}).config.model, "cpu", 1)
    check_weights_fit(dataclasses.replace(model, random_weights=True, layers=6), "cpu", 4 * GB)
    check_weights_fit(dataclasses.replace(model, weights=str(tmp_path)), "cpu", 1)

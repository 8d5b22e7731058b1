"""What is said of a machine, from facts that are made up."""

import dataclasses
from typing import Any

import pytest

from adaspa_cli.doctor.facts import Asked, Extra, Facts, Ffmpeg, Folder, Gpu, Hub, Kernels, Library, Model, Probed
from adaspa_cli.doctor.judge import Finding, judge

LAPTOP = Facts(
    python="3.12.4",
    system="Linux x86_64",
    cpu="a processor",
    cores=8,
    memory=16_000_000_000,
    memory_free=9_000_000_000,
    libraries=(Library("torch", "2.13.0"), Library("diffusers", "0.42.1"), Library("rich", "15.0.0")),
    extras=(Extra("lora", (Library("peft", "0.18.0"),)),),
    probed=Probed(
        device="cpu",
        dtype="float32",
        kernels=(Kernels("triton", problem="its kernels need a GPU", unusable=True), Kernels("cpu", "PyTorch")),
        fp8_problem="linear 'fp8' needs a GPU",
    ),
    out=Folder("videos", 80_000_000_000),
    hub=Hub(Folder("/home/me/.cache/huggingface/hub", 80_000_000_000)),
    ffmpeg=Ffmpeg("/usr/bin/ffmpeg", "7.1"),
)
H100 = Gpu("NVIDIA H100", "9.0", 85_000_000_000, 84_000_000_000)
SERVER = dataclasses.replace(
    LAPTOP,
    driver="570.86.15",
    driver_cuda="12.8",
    driver_there=True,
    probed=Probed(
        cuda="12.8",
        gpus=(H100, H100),
        device="cuda",
        dtype="bfloat16",
        kernels=(Kernels("triton", "hopper"), Kernels("cpu", problem="cannot run on cuda", unusable=True)),
    ),
)
MEMORY = {"none": 54_000_000_000, "model": 40_000_000_000, "group": 13_000_000_000}
HUNYUAN = Model("hunyuan", "org/HunyuanVideo", False, 42_000_000_000, MEMORY)


def changed(facts: Facts, **values: Any) -> Facts:
    """The same machine but for something; ``probed_KEY`` changes what is probed."""
    probed = {key.removeprefix("probed_"): value for key, value in values.items() if key.startswith("probed_")}
    own = {key: value for key, value in values.items() if not key.startswith("probed_")}
    return dataclasses.replace(facts, **own, probed=dataclasses.replace(facts.probed, **probed))


def problems(facts: Facts, **asked: Any) -> list[Finding]:
    return [finding for finding in judge(facts, Asked(**asked)) if finding.status == "problem"]


def of(facts: Facts, name: str, **asked: Any) -> Finding:
    (found,) = [finding for finding in judge(facts, Asked(**asked)) if finding.name == name]
    return found


@pytest.mark.parametrize("facts", [LAPTOP, SERVER], ids=["laptop", "server"])
def test_nothing_is_wrong_with_a_sound_machine(facts: Facts) -> None:
    assert problems(facts) == []
    assert all(finding.mend is None for finding in judge(facts, Asked()) if finding.status == "ok")


def test_a_laptop_lacks_a_gpu_and_that_is_no_problem() -> None:
    assert of(LAPTOP, "gpu").status == "note"
    assert of(LAPTOP, "triton").status == "note"
    assert of(LAPTOP, "fp8").status == "note"
    assert of(LAPTOP, "others").text == "rich 15.0.0"


def test_what_is_asked_for_and_cannot_be_is_a_problem() -> None:
    assert [found.name for found in problems(LAPTOP, attention_backend="triton")] == ["triton"]
    assert [found.name for found in problems(LAPTOP, linear="fp8")] == ["fp8"]
    lacking = changed(
        LAPTOP, probed_device=None, probed_device_problem="--device cuda: this machine has 0 CUDA devices"
    )
    assert [found.name for found in problems(lacking, device="cuda")] == ["device"]
    assert problems(SERVER, attention_backend="triton", linear="fp8", device="cuda") == []


def test_a_gpu_that_torch_cannot_use_is_a_problem() -> None:
    (found,) = problems(changed(LAPTOP, driver_there=True))
    assert "a build without CUDA" in found.text
    old = changed(LAPTOP, driver_there=True, driver_cuda="11.4", probed_cuda="12.8", probed_gpu_problem="too old")
    (found,) = problems(old)
    assert found.text == "too old"
    assert found.mend is not None
    assert "11.4" in found.mend


def test_libraries_that_are_broken() -> None:
    libraries = (
        Library("torch", "2.13.0"),
        Library("diffusers", None),
        Library("transformers", "4.50.0", needs=">=5.0"),
    )
    errors = {"torch": "ImportError: libcudart.so.12", "torchvision": "RuntimeError: operator nms does not exist"}
    facts = changed(LAPTOP, libraries=libraries, probed_errors=errors, probed_device=None)
    found = {one.name: one for one in problems(facts)}
    assert found["torch"].text == "2.13.0 cannot be imported: ImportError: libcudart.so.12"
    assert found["diffusers"].mend == "pip install diffusers"
    assert found["transformers"].mend == "pip install 'transformers>=5.0'"
    assert "pip uninstall torchvision" in str(found["torchvision"].mend)
    assert "gpu" not in {one.name for one in judge(facts, Asked())}  # nobody could look


def test_a_crash_is_told() -> None:
    facts = changed(LAPTOP, probed_died="it was killed by signal 4, at import torch")
    assert "signal 4, at import torch" in problems(facts)[0].text


def test_kernels_that_fail_are_a_problem_without_being_asked_for() -> None:
    broken = Kernels("triton", problem="RuntimeError: Failed to find C compiler")
    (found,) = problems(changed(SERVER, probed_kernels=(broken,)))
    assert "C compiler" in str(found.mend)


def test_disk_and_ffmpeg() -> None:
    facts = changed(LAPTOP, out=Folder("/", problem="cannot write to /"), ffmpeg=Ffmpeg(problem="no ffmpeg exe"))
    assert [found.name for found in problems(facts)] == ["videos", "ffmpeg"]
    little = of(changed(LAPTOP, out=Folder("videos", 1_000_000)), "videos")
    assert (little.status, little.text) == ("note", "videos: only 1 MB free")


def test_a_model_fits_or_does_not() -> None:
    assert problems(SERVER, model=HUNYUAN) == []
    for free, mend in ((45_000_000_000, "--offload model"), (24_000_000_000, "--offload group")):
        small = changed(SERVER, probed_gpus=(dataclasses.replace(H100, free=free),))
        assert [one.mend for one in judge(small, Asked(model=HUNYUAN)) if one.name == "hunyuan"][-1] == mend
    fp8 = dataclasses.replace(HUNYUAN, memory={"none": 46_000_000_000})
    assert problems(SERVER, model=fp8) == []
    small = changed(SERVER, probed_gpus=(dataclasses.replace(H100, free=45_000_000_000),))
    assert str(problems(small, model=fp8)[-1].mend).startswith("without --linear, --offload group")
    tiny = changed(SERVER, probed_gpus=(dataclasses.replace(H100, free=8_000_000_000),))
    assert [found.name for found in problems(tiny, model=HUNYUAN)] == ["hunyuan"]
    assert [found.name for found in problems(LAPTOP, model=HUNYUAN)] == ["hunyuan"]


@pytest.mark.parametrize(("device", "fits"), [("cuda", False), ("cuda:0", False), ("cuda:1", True)])
def test_a_model_fits_the_gpu_that_a_run_would_take(device: str, fits: bool) -> None:
    full = dataclasses.replace(H100, free=8_000_000_000)
    facts = changed(SERVER, probed_gpus=(full, H100), probed_device=device)
    assert (problems(facts, model=HUNYUAN) == []) == fits


@pytest.mark.parametrize(
    ("hub", "gated", "text"),
    [
        ({"offline": True}, False, "HF_HUB_OFFLINE"),
        ({}, True, "there is no token"),
        ({"cache": Folder("cache", 5_000_000_000)}, False, "has 5.0 GB free"),
    ],
)
def test_a_model_that_cannot_be_had(hub: dict[str, Any], gated: bool, text: str) -> None:
    facts = changed(SERVER, hub=dataclasses.replace(SERVER.hub, **hub))
    (found,) = problems(facts, model=dataclasses.replace(HUNYUAN, gated=gated))
    assert text in found.text
    assert found.mend is not None
    held = changed(facts, hub=dataclasses.replace(facts.hub, complete=("hunyuan",)))
    assert problems(held, model=HUNYUAN) == []


def test_an_extra_that_is_there_in_part() -> None:
    extras = (
        Extra("quant", (Library("torchao", "0.17"), Library("gguf", None))),
        Extra("ray", (Library("ray", None),)),
    )
    facts = changed(LAPTOP, extras=extras)
    assert of(facts, "quant").text == "torchao 0.17, gguf missing"
    assert of(facts, "ray").text == "not installed"
    assert of(facts, "ray").mend == "pip install 'adaspa[ray]'"
    assert problems(facts) == []

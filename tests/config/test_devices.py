"""What is refused of a device before torch is imported."""

import pytest
import torch

import adaspa_kernels.launch
from adaspa_cli.attention import resolve as resolve_backend
from adaspa_cli.config import MethodConfig, ModelConfig, devices
from adaspa_cli.errors import BackendError
from adaspa_cli.models.loading import choose_device


@pytest.mark.parametrize(
    ("model", "method", "error"),
    [
        ({"device": "cuda:1"}, {}, "--device cuda:1: this machine has 0 CUDA devices"),
        ({"offload": "group"}, {}, "--offload group needs a GPU, and the run is on cpu"),
        ({}, {"linear": "fp8"}, "linear 'fp8' needs a GPU, and this machine has none"),
        ({}, {"attention_backend": "triton"}, "attention backend 'triton' cannot run on cpu: on a CPU its kernels"),
    ],
)
def test_a_machine_without_a_driver_has_no_gpu(
    monkeypatch: pytest.MonkeyPatch, model: dict[str, str], method: dict[str, str], error: str
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(devices, "may_have_gpu", lambda: False)
    with pytest.raises(BackendError, match=error):
        devices.check_device(ModelConfig(**model), MethodConfig(**method))


def test_what_only_torch_can_tell_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "may_have_gpu", lambda: True)
    devices.check_device(ModelConfig(offload="model"), MethodConfig(attention_backend="triton", linear="fp8"))
    devices.check_device(ModelConfig(device="cuda:7"), MethodConfig())
    with pytest.raises(BackendError, match="attention backend 'cpu' cannot run on cuda:7"):
        devices.check_device(ModelConfig(device="cuda:7"), MethodConfig(attention_backend="cpu"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    devices.check_device(ModelConfig(device="cpu"), MethodConfig(attention_backend="triton"))


def test_torch_finds_no_gpu_without_a_driver() -> None:
    assert devices.may_have_gpu() or not torch.cuda.is_available()


def test_later_refusals_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(devices, "may_have_gpu", lambda: False)
    monkeypatch.setattr(adaspa_kernels.launch, "_interpreted", lambda: False)
    with pytest.raises(BackendError) as early:
        devices.check_device(ModelConfig(), MethodConfig(attention_backend="triton"))
    with pytest.raises(BackendError) as late:
        resolve_backend("triton", torch.device("cpu"))
    assert (early.value.message, early.value.hint) == (late.value.message, late.value.hint)
    assert late.value.hint == "use --attention-backend auto"
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="this machine has 0 CUDA devices"):
            choose_device("cuda:1")

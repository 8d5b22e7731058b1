"""Where the weights of layers in FP8 are meanwhile: in main memory, and back again as they were."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import adaspa_cli
from adaspa_cli.errors import RunError
from adaspa_cli.models import fp8, fp8_linear
from adaspa_cli.models.compiled import compile_blocks
from adaspa_cli.models.fp8 import Fp8Linears
from adaspa_cli.models.fp8_linear import FP8, Fp8Linear
from adaspa_cli.models.registry import family_of
from tests.models.test_lora import needs_peft, write_lora
from tests.pipelines import hunyuan_video, latents

SMALL: dict[str, Any] = {"height": 32, "width": 48, "num_inference_steps": 2}


@pytest.fixture
def pipe() -> Any:
    return hunyuan_video()


@pytest.fixture
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights count as being elsewhere than in main memory, so that they are copied there and back."""
    monkeypatch.setattr(fp8_linear, "_is_elsewhere", lambda _: True)
    monkeypatch.setattr(fp8, "machine_memory", lambda: (None, None))  # room for all, whatever else runs


def emulated(pipe: Any) -> Fp8Linears:
    return Fp8Linears(family_of(pipe), pipe, emulate=True)


def run(pipe: Any) -> Tensor:
    with adaspa_cli.apply(pipe, "full"):
        return latents(pipe, **SMALL)


def ours(pipe: Any) -> dict[str, Fp8Linear]:
    return {name: module for name, module in pipe.transformer.named_modules() if isinstance(module, Fp8Linear)}


def places(pipe: Any) -> dict[str, int]:
    """Where the numbers of each parameter lie."""
    return {name: value.data_ptr() for name, value in pipe.transformer.named_parameters()}


def storage_of(layer: Fp8Linear) -> StorageWeakRef:
    return StorageWeakRef(layer.original.weight.untyped_storage())


def check_same(pipe: Any, parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    found = dict(pipe.transformer.named_parameters())
    assert list(found) == list(parameters)
    for name, parameter in parameters.items():
        assert found[name] is parameter, name
        assert torch.equal(parameter, values[name]), name
        assert parameter.stride() == values[name].stride(), name


def taken(pipe: Any) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """The parameters, and what they hold."""
    parameters = dict(pipe.transformer.named_parameters())
    return parameters, {name: parameter.detach().clone() for name, parameter in parameters.items()}


# --- there and back


@pytest.mark.usefixtures("_elsewhere")
def test_weights_leave_the_device_and_come_back(pipe: Any) -> None:
    before, expected = taken(pipe), run(pipe)
    layers = len(list(before[0]))
    device = {name: StorageWeakRef(value.untyped_storage()) for name, value in before[0].items()}
    with emulated(pipe) as linears:
        gone = {f"{name}.weight" for name in ours(pipe)}
        assert len(gone) == linears.layers == 34
        assert {name for name, storage in device.items() if storage.expired()} == gone
        assert layers - len(list(pipe.transformer.parameters())) == len(gone)
        error = (run(pipe) - expected).norm() / expected.norm()
        assert 1e-4 < error < 0.2
        numbers = [StorageWeakRef(layer.weight.untyped_storage()) for layer in ours(pipe).values()]
    assert all(storage.expired() for storage in numbers)
    check_same(pipe, *before)
    assert torch.equal(run(pipe), expected)


def test_weights_in_main_memory_stay_where_they_are(pipe: Any) -> None:
    before, where = taken(pipe), places(pipe)
    with emulated(pipe):
        pass
    check_same(pipe, *before)
    assert places(pipe) == where


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("inside", [True, False])
def test_weights_can_be_trained_afterwards(pipe: Any, inside: bool) -> None:
    with torch.inference_mode(inside):
        linears = emulated(pipe)
        linears.remove()
    weight = pipe.transformer.transformer_blocks[0].attn.to_q.weight
    assert weight.requires_grad
    assert not weight.is_inference()
    (weight * weight).sum().backward()
    assert torch.equal(weight.grad, 2 * weight)


@pytest.mark.usefixtures("_elsewhere")
def test_weights_that_others_use_stay_on_the_device(pipe: Any) -> None:
    first, second = pipe.transformer.transformer_blocks
    first.attn.to_q.weight = second.attn.to_q.weight  # tied
    first.attn.to_out[0] = second.attn.to_out[0]  # one layer in two places
    joined = nn.Parameter(torch.cat([first.attn.to_k.weight, first.attn.to_v.weight]).detach())
    first.attn.to_k.weight, first.attn.to_v.weight = (nn.Parameter(part) for part in joined.detach().chunk(2))
    second.joined = nn.Module()
    second.joined.weight = joined
    shared = {
        f"transformer_blocks.{layer}.attn.{name}"
        for layer, names in enumerate((("to_q", "to_out.0", "to_k", "to_v"), ("to_q", "to_out.0")))
        for name in names
    }
    before, expected = taken(pipe), run(pipe)
    storages = {StorageWeakRef(parameter.untyped_storage()) for parameter in before[0].values()}
    with emulated(pipe):
        layers = ours(pipe)
        assert {name for name, layer in layers.items() if storage_of(layer) in storages} == shared
        assert len(layers) == 34
        run(pipe)
    check_same(pipe, *before)
    assert first.attn.to_q.weight is second.attn.to_q.weight
    assert first.attn.to_out[0] is second.attn.to_out[0]
    assert first.attn.to_k.weight.untyped_storage().data_ptr() == joined.untyped_storage().data_ptr()
    assert torch.equal(run(pipe), expected)


@pytest.mark.usefixtures("_elsewhere")
def test_weights_without_room_stay_on_the_device(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An eighth of main memory, 100 of 800 bytes, is left free; here other processes took some between two layers."""
    before, expected = taken(pipe), run(pipe)
    storages = {StorageWeakRef(parameter.untyped_storage()) for parameter in before[0].values()}
    asked = iter(range(34))
    largest = max(parameter.nbytes for parameter in before[0].values())
    monkeypatch.setattr(fp8, "machine_memory", lambda: (100 + (largest if next(asked) < 10 else 0), 800))
    with emulated(pipe):
        stay = [layer for layer in ours(pipe).values() if storage_of(layer) in storages]
        assert len(stay) == 24
        run(pipe)
    check_same(pipe, *before)
    assert torch.equal(run(pipe), expected)
    gigabytes = sum(layer.original.weight.nbytes for layer in stay) / 1e9
    assert [record.getMessage() for record in caplog.records] == [
        f"main memory has no room for {gigabytes:.1f} GB of the weights that FP8 replaces: they stay on the GPU"
    ]


@pytest.mark.usefixtures("_elsewhere")
def test_an_error_in_the_middle_leaves_nothing_moved(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before, expected, moved = taken(pipe), run(pipe), []
    move = fp8_linear._move

    def failing(parameter: Tensor, device: torch.device) -> None:
        moved.append(parameter)
        if len(moved) == 20:
            raise MemoryError
        move(parameter, device)

    monkeypatch.setattr(fp8_linear, "_move", failing)
    with pytest.raises(MemoryError):
        emulated(pipe)
    assert len(moved) == 20 + 20
    assert not ours(pipe)
    check_same(pipe, *before)
    assert torch.equal(run(pipe), expected)


@pytest.mark.usefixtures("_elsewhere")
def test_removing_goes_on_once_there_is_room(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before, expected = taken(pipe), run(pipe)
    handle = adaspa_cli.apply(pipe, "full")
    handle.linears = emulated(pipe)
    move, moved = fp8_linear._move, []

    def failing(parameter: Tensor, device: torch.device) -> None:
        moved.append(parameter)
        if len(moved) == 20:
            raise torch.OutOfMemoryError
        move(parameter, device)

    monkeypatch.setattr(fp8_linear, "_move", failing)
    with pytest.raises(torch.OutOfMemoryError):
        handle.remove()
    assert not ours(pipe)
    assert not any(type(one).__module__.startswith("adaspa") for one in pipe.transformer.attn_processors.values())
    assert "step" not in vars(pipe.scheduler)
    handle.remove()
    assert len(moved) == 34 + 1
    check_same(pipe, *before)
    assert torch.equal(run(pipe), expected)


# --- what else is done to a pipeline meanwhile


@pytest.mark.usefixtures("_elsewhere")
def test_what_is_saved_meanwhile_is_the_model(pipe: Any, tmp_path: Path) -> None:
    whole = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    with emulated(pipe):
        state = pipe.transformer.state_dict()
        assert list(state) == list(whole)
        for name, value in whole.items():
            assert torch.equal(state[name], value), name
        with pytest.raises(RunError, match="weights can't be loaded while linear layers are in FP8"):
            pipe.transformer.load_state_dict(whole)
        pipe.transformer.save_pretrained(tmp_path)
    pipe.transformer.load_state_dict(whole)
    saved = type(pipe.transformer).from_pretrained(tmp_path).state_dict()
    assert saved.keys() == whole.keys()
    assert all(torch.equal(saved[name], value) for name, value in whole.items())


@pytest.mark.parametrize("parked", [True, False])
def test_layers_follow_the_model_to_another_dtype(pipe: Any, parked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8_linear, "_is_elsewhere", lambda _: parked)
    twin = hunyuan_video()
    with emulated(pipe):
        numbers = {name: (layer.weight.clone(), layer.scale.clone()) for name, layer in ours(pipe).items()}
        pipe.transformer.to(torch.bfloat16)
        for name, layer in ours(pipe).items():
            assert layer.weight.dtype == FP8
            assert torch.equal(layer.weight.view(torch.uint8), numbers[name][0].view(torch.uint8))
            assert torch.equal(layer.scale, numbers[name][1])
            assert layer.original.weight.dtype == layer.original.bias.dtype == torch.bfloat16
    twin.transformer.to(torch.bfloat16)
    check_same(pipe, *(dict(pipe.transformer.named_parameters()), taken(twin)[1]))


@pytest.mark.usefixtures("_elsewhere")
def test_weights_return_to_where_the_layers_were_moved(pipe: Any) -> None:
    with emulated(pipe):
        layer = ours(pipe)["transformer_blocks.0.attn.to_q"]
        original = layer.original
        layer.to("meta")
        assert layer.weight.is_meta
        assert layer.weight.dtype == FP8
        assert original.weight.device.type == "cpu"
        layer.weight = torch.empty(layer.weight.shape, dtype=FP8)
    assert pipe.transformer.transformer_blocks[0].attn.to_q is original


@pytest.mark.usefixtures("_elsewhere")
def test_a_copy_has_layers_of_its_own(pipe: Any) -> None:
    with emulated(pipe):
        expected = run(pipe)
        twin = copy.deepcopy(pipe.transformer)
    pipe.transformer = twin
    assert len(ours(pipe)) == 34
    assert torch.equal(run(pipe), expected)


@pytest.mark.usefixtures("_elsewhere")
def test_a_lora_for_layers_in_fp8_is_refused(pipe: Any, tmp_path: Path) -> None:
    needs_peft()
    write_lora(tmp_path / "style.safetensors", pipe.transformer, ("transformer_blocks.0.attn.to_q",))
    before = taken(pipe)
    with emulated(pipe), pytest.raises(ValueError, match="Fp8Linear"):
        pipe.load_lora_weights(str(tmp_path), weight_name="style.safetensors", adapter_name="style")
    check_same(pipe, *before)


@pytest.mark.usefixtures("_elsewhere")
def test_compiled_blocks_have_their_weights_afterwards(pipe: Any) -> None:
    expected = run(pipe)
    compile_blocks(family_of(pipe).blocks(pipe.transformer), torch.device("cpu"), backend="aot_eager")
    torch._dynamo.reset()
    with emulated(pipe):
        run(pipe)
    torch.testing.assert_close(run(pipe), expected)
    torch._dynamo.reset()


# --- on a GPU with FP8


@pytest.mark.gpu
def test_a_gpu_holds_a_byte_a_weight(fp8_device: torch.device) -> None:
    pipe = hunyuan_video(num_attention_heads=16, num_layers=1, num_single_layers=1)
    pipe.to(fp8_device, torch.bfloat16)
    with adaspa_cli.apply(pipe, "full", linear="fp8"):
        latents(pipe, **SMALL)  # workspaces of the products stay
    before, expected = taken(pipe), run(pipe)
    held = requested()
    with adaspa_cli.apply(pipe, "full", linear="fp8") as handle:
        linears = handle.linears
        assert linears is not None
        assert all(layer.original.weight.device.type == "cpu" for layer in ours(pipe).values())
        # Of two bytes a weight one is left, and a scale for each row.
        assert 0.95 * linears.weight_bytes < held - requested() < linears.weight_bytes
        latents(pipe, **SMALL)
    assert all(parameter.is_cuda for parameter in pipe.transformer.parameters())
    check_same(pipe, *before)
    assert torch.equal(run(pipe), expected)
    assert abs(requested() - held) < 0.01 * linears.weight_bytes


def requested() -> int:
    """Bytes of tensors on the GPU, without what the allocator rounds them up to."""
    torch.cuda.synchronize()
    return int(torch.cuda.memory_stats()["requested_bytes.all.current"])

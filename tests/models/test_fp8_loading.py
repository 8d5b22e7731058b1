"""With ``--linear fp8`` a device never holds the whole model: the weights that FP8 takes are loaded to main memory.

The meta device stands for a GPU: it counts bytes, and keeps no numbers.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload_with_hook
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import adaspa_cli
from adaspa_cli.config import resolve
from adaspa_cli.errors import RunError
from adaspa_cli.models import fp8, fp8_linear, loading, random_weights
from adaspa_cli.models.fp8 import Fp8Linears, left_behind
from adaspa_cli.models.fp8_linear import FP8
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.models.registry import family_of
from tests.models.test_fp8_memory import check_same, emulated, ours, taken
from tests.pipelines import hunyuan_video, latents

META = torch.device("meta")
LAYERS = 34  # of 2 dual and 2 single blocks: 2 x 12 and 2 x 5


class Counter(TorchDispatchMode):
    """Counts bytes on the meta device.

    Attributes:
        peak: the most at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[StorageWeakRef, int] = {}
        self.peak = 0

    @property
    def held(self) -> int:
        self._storages = {key: size for key, size in self._storages.items() if not key.expired()}
        return sum(self._storages.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor) and one.is_meta:
                storage = one.untyped_storage()
                self._storages[StorageWeakRef(storage)] = storage.nbytes()
        self.peak = max(self.peak, self.held)
        return out


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device is the run's, and quantises as the kernel does: without a copy in another dtype."""
    monkeypatch.setattr(loading, "choose_device", lambda _: META)
    made = {"dtype": FP8}, {"dtype": torch.float32}
    monkeypatch.setattr(
        fp8_linear, "_quantise", lambda x, _: (x.new_empty(x.shape, **made[0]), x.new_empty(len(x), 1, **made[1]))
    )


def loaded(folder: Path, linear: str, **settings: Any) -> Any:
    settings = {"model": str(folder), "dtype": "bfloat16", "device": "cpu", **settings}
    return load_pipeline(resolve(settings).config.model, linear=linear)


def replaced(pipe: Any) -> dict[str, nn.Parameter]:
    """The weights that FP8 takes, by the names of their layers."""
    family, found = family_of(pipe), {}
    for number, block in enumerate(family.blocks(pipe.transformer)):
        layers = {f"{number}.{path}": fp8._find(block, path) for path in family.linears.paths()}
        found |= {name: layer.weight for name, layer in layers.items() if layer is not None}
    return found


# --- loading


@pytest.mark.usefixtures("_gpu")
def test_the_device_never_holds_the_whole_model(hunyuan_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = loading._place
    monkeypatch.setattr(loading, "_place", lambda *_: None)
    pipes = {linear: loaded(hunyuan_folder, linear) for linear in ("fp8", "model")}  # uncounted: it uses meta tensors

    def placed(linear: str) -> Any:
        place(pipes[linear], "none", META, linear)
        return pipes[linear]

    with Counter() as counter:
        pipe = placed("fp8")
        weights = replaced(pipe)
        rest = counter.held
        assert pipe._execution_device == META
        linears = Fp8Linears(family_of(pipe), pipe, emulate=True)
    assert linears.layers == LAYERS
    assert all(weight.device.type == "cpu" for weight in weights.values())
    assert all(layer.weight.is_meta and layer.scale.is_meta for layer in ours(pipe).values())
    scales = 4 * sum(layer.scale.numel() for layer in ours(pipe).values())
    largest = max(weight.nbytes for weight in weights.values())
    assert counter.held == rest + linears.weight_bytes + scales
    assert counter.peak <= counter.held + largest
    with Counter() as whole:
        placed("model")
    assert whole.peak == rest + 2 * linears.weight_bytes


@pytest.mark.usefixtures("_gpu")
def test_removing_leaves_all_as_it_was_loaded(hunyuan_folder: Path) -> None:
    pipe = loaded(hunyuan_folder, "fp8")
    before, names = dict(pipe.transformer.named_parameters()), replaced(pipe)
    values = {name: weight.detach().clone() for name, weight in names.items()}
    for _ in range(2):  # as for one video after another
        with Fp8Linears(family_of(pipe), pipe, emulate=True) as linears:
            assert linears.layers == LAYERS
            pipe.to(META)
        found = dict(pipe.transformer.named_parameters())
        assert list(found) == list(before)
        weights = replaced(pipe)
        for name, weight in names.items():
            assert weights[name] is weight
            assert torch.equal(weight, values[name])
    pipe.to(META)  # completes it for other runs
    assert all(parameter.is_meta for parameter in pipe.transformer.parameters())


def test_what_fp8_does_not_take_moves(hunyuan_folder: Path) -> None:
    pipe = loaded(hunyuan_folder, "model")
    first, second = pipe.transformer.transformer_blocks
    first.attn.to_q.weight = second.attn.to_q.weight  # tied
    first.attn.to_k.register_forward_hook(lambda *_: None)
    names = list(pipe.transformer.state_dict())
    with left_behind(family_of(pipe), pipe):
        pipe.to(META)
    assert list(pipe.transformer.state_dict()) == names
    left = {name for name, value in pipe.transformer.named_parameters() if not value.is_meta}
    assert len(left) == LAYERS - 3
    moved = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_q", "transformer_blocks.0.attn.to_k")
    assert not left & {f"{name}.weight" for name in moved}
    assert all(name.endswith(".weight") and "norm" not in name and "refiner" not in name for name in left)


def test_weights_are_there_again_if_the_rest_does_not_fit(hunyuan_folder: Path) -> None:
    pipe = loaded(hunyuan_folder, "model")
    before = taken(pipe)

    with pytest.raises(torch.OutOfMemoryError), left_behind(family_of(pipe), pipe):
        raise torch.OutOfMemoryError
    check_same(pipe, *before)


@pytest.mark.parametrize(
    ("linear", "room", "held"), [("model", 1e18, "meta"), ("fp8", 1e18, "cpu"), ("fp8", 1e3, "meta")]
)
def test_random_weights_are_kept_in_main_memory_if_there_is_room(
    hunyuan_folder: Path, linear: str, room: float, held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, found = random_weights.random_pipeline, []

    def built(architecture: Any, dtype: Any, _device: Any, **more: Any) -> Any:
        found.append(more["held"])
        return build(architecture, dtype, torch.device("cpu"), **more)

    monkeypatch.setattr(random_weights, "random_pipeline", built)
    monkeypatch.setattr(loading, "choose_device", lambda _: META)
    monkeypatch.setattr(loading, "room", lambda: room)
    pipe = loaded(hunyuan_folder, linear, random_weights=True)
    assert found == [torch.device(held)]
    assert {weight.device.type for weight in replaced(pipe).values()} == {held}


# --- offloading of whole models


@pytest.fixture
def offloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A pipeline whose transformer is on the device while it runs; what the device quantises is nothing here."""
    pipe = hunyuan_video()
    monkeypatch.setattr(fp8_linear, "_quantise", lambda x, _: (torch.zeros(x.shape).to(FP8), torch.ones(len(x), 1)))
    monkeypatch.setattr(type(pipe), "_execution_device", META)
    cpu_offload_with_hook(pipe.transformer, META)
    return pipe


def devices(module: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}


@pytest.mark.parametrize("inside", [True, False])
def test_fp8_weights_move_with_an_offloaded_transformer(
    offloaded: Any, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer, before = offloaded.transformer, taken(offloaded)
    places = {name: weight.data_ptr() for name, weight in replaced(offloaded).items()}
    linears, returned = emulated(offloaded), list[Any]()
    assert linears.layers == LAYERS
    assert devices(transformer) == {"cpu"}
    with torch.inference_mode(inside):
        transformer._hf_hook.pre_forward(transformer)
        assert devices(transformer) == {"meta"}
        assert all(layer.weight.dtype == FP8 for layer in ours(offloaded).values())
    monkeypatch.setattr(transformer, "to", returned.append)
    linears.remove()
    assert returned == ["cpu"]
    weights = replaced(offloaded)
    assert {name: weight.data_ptr() for name, weight in weights.items()} == places
    for name, parameter in transformer.named_parameters():
        if parameter.device.type == "cpu":
            assert parameter is before[0][name]
            assert torch.equal(parameter, before[1][name])
            assert not parameter.is_inference()


def test_offloading_ends_where_it_began(offloaded: Any) -> None:
    before = taken(offloaded)
    with emulated(offloaded):
        assert all(layer.weight.device.type == "cpu" for layer in ours(offloaded).values())
    check_same(offloaded, *before)


def test_weights_that_are_moved_in_another_way_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By diffusers' group offloading of blocks, say, or forgotten in main memory."""
    pipe = hunyuan_video()
    monkeypatch.setattr(type(pipe), "_execution_device", META)
    before = taken(pipe)
    with pytest.raises(RunError, match="needs the weights on meta, and some are on cpu"):
        emulated(pipe)
    pipe.transformer.to(META)
    block = pipe.transformer.transformer_blocks[0].to_empty(device="cpu")
    with pytest.raises(RunError, match="needs the weights on meta, and some are on cpu"):
        emulated(pipe)
    assert not ours(pipe)
    assert devices(block) == {"cpu"}
    assert list(dict(pipe.transformer.named_parameters())) == list(before[0])


# --- on a GPU with FP8

SMALL: dict[str, Any] = {"height": 32, "width": 48, "num_inference_steps": 2}


def of_some_gigabytes(linear: str, offload: str = "none") -> Any:
    """12 of HunyuanVideo's 60 blocks: 5.7 GB in bfloat16, of which FP8 takes 3.6. The random weights are always the
    same."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    flags = {"model": "hunyuan", "random_weights": True, "layers": 12, "dtype": "bfloat16", "device": "cuda"}
    return load_pipeline(resolve({**flags, "offload": offload}).config.model, decode=False, linear=linear)


def run_in_fp8(pipe: Any) -> Tensor:
    with adaspa_cli.apply(pipe, "full", linear="fp8") as handle:
        assert handle.linears is not None
        assert handle.linears.layers == handle.linears.of
        assert all(layer.original.weight.device.type == "cpu" for layer in ours(pipe).values())
        return latents(pipe, **SMALL)


@pytest.mark.gpu
@pytest.mark.usefixtures("fp8_device")
@pytest.mark.parametrize("offload", ["none", "model"])
def test_a_gpu_never_holds_the_whole_model(offload: str) -> None:
    begin = torch.cuda.memory_allocated()
    pipe = of_some_gigabytes("fp8", offload)
    weights = replaced(pipe)
    values = {name: weight.detach().clone() for name, weight in weights.items()}
    assert all(weight.device.type == "cpu" for weight in weights.values())
    whole = sum(parameter.nbytes for parameter in pipe.transformer.parameters())
    halved = sum(weight.numel() for weight in weights.values())
    found = [run_in_fp8(pipe) for _ in range(2)]
    peak = torch.cuda.max_memory_allocated() - begin
    largest = max(parameter.nbytes for parameter in pipe.transformer.parameters())
    assert whole - halved < peak < whole - halved + 2 * largest + 3e8  # activations, and workspaces of the products
    assert peak < 0.8 * whole
    for name, weight in replaced(pipe).items():
        assert weight is weights[name]
        assert torch.equal(weight, values[name])
    if offload == "model":
        assert torch.cuda.memory_allocated() - begin < 0.1 * whole
    del pipe, weights, values, weight
    expected = run_in_fp8(of_some_gigabytes("model"))
    assert torch.cuda.max_memory_allocated() - begin > whole
    assert all(torch.equal(one, expected) for one in found)

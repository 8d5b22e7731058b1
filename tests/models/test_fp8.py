"""Linear layers in FP8: their error, what they leave alone, and that they come off again."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.activations import GELU
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

import adaspa_cli
from adaspa_cli.config import resolve
from adaspa_cli.errors import BackendError, ConfigError, RunError
from adaspa_cli.jobs.fingerprint import video_fingerprint
from adaspa_cli.models import fp8_linear
from adaspa_cli.models.compiled import compile_blocks
from adaspa_cli.models.fp8 import Fp8Linears
from adaspa_cli.models.fp8_linear import Fp8Linear, SharedInput, check_fp8, quantise, quantise_operator
from adaspa_cli.models.registry import family_of
from tests.pipelines import cogvideox, hunyuan_video, latents

MAKERS: dict[str, Callable[..., Any]] = {"hunyuan": hunyuan_video, "cogvideox": cogvideox}
# Of 2 dual and 2 single blocks: 2 x 12 and 2 x 5. Of 2 blocks: 2 x 6.
LAYERS = {"hunyuan": 34, "cogvideox": 12}
SMALL: dict[str, Any] = {"height": 32, "width": 48, "num_inference_steps": 2}


@pytest.fixture(params=list(MAKERS))
def pipe(request: pytest.FixtureRequest) -> Any:
    return MAKERS[request.param]()


def emulated(pipe: Any) -> Fp8Linears:
    return Fp8Linears(family_of(pipe), pipe, emulate=True)


def run(pipe: Any, method: str = "full") -> Tensor:
    with adaspa_cli.apply(pipe, method):
        return latents(pipe, **SMALL)


def error(found: Tensor, truth: Tensor) -> float:
    return float(((found - truth).double().norm() / truth.double().norm()).detach())


def modules(pipe: Any) -> dict[str, nn.Module]:
    return dict(pipe.transformer.named_modules())


# --- one layer


@pytest.mark.parametrize("rows", [3, 511, 512, 700])
def test_no_product_has_fewer_rows_than_there_are_kernels_for(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def product(x: Tensor, weight: Tensor, *, scale_a: Tensor, scale_b: Tensor, **settings: Any) -> Tensor:
        seen.append(len(x))
        assert len(scale_a) == len(x)
        return fp8_linear._emulated(x, scale_a, weight.T, scale_b, settings["bias"], settings["out_dtype"])

    monkeypatch.setattr(torch, "_scaled_mm", product)
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 32), torch.randn(1, rows, 64)
    found = Fp8Linear(layer, emulate=False)(x)
    assert seen == [max(rows, 512)]
    torch.testing.assert_close(found, Fp8Linear(layer, emulate=True)(x))


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_has_the_error_of_e4m3(bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(512, 96, bias=bias), torch.randn(2, 40, 512)
    out = Fp8Linear(layer, emulate=True)(x)
    assert out.shape == (2, 40, 96)
    assert 0.03 < error(out, layer(x)) < 0.045


def test_rows_of_any_size_have_the_same_error() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(512, 96, bias=False)
    sizes = 10.0 ** torch.linspace(-5, 4, 40)[:, None]
    channels = 10.0 ** torch.linspace(-3, 3, 96)
    layer.weight.data *= channels[:, None]
    x = torch.randn(40, 512) * sizes
    found, truth = Fp8Linear(layer, emulate=True)(x) / channels, layer(x) / channels
    errors = (found - truth).norm(dim=1) / truth.norm(dim=1)
    assert errors.max() < 0.06


def test_gelu_of_the_last_channels_comes_before() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(512, 96), torch.randn(40, 512)
    expected = layer(torch.cat([x[:, :128], F.gelu(x[:, 128:], approximate="tanh")], 1))
    assert error(Fp8Linear(layer, emulate=True, gelu_from=128)(x), expected) < 0.045


def test_layers_that_share_an_input_quantise_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    quantised: list[Tensor] = []
    monkeypatch.setattr(fp8_linear, "quantise", lambda x, *more: (quantised.append(x), quantise(x, *more))[1])
    shared = SharedInput()
    layers = [nn.Linear(32, 32) for _ in range(3)]
    with torch.no_grad():
        ours = [Fp8Linear(layer, emulate=True, shared=shared) for layer in layers]
        quantised.clear()
        x = torch.randn(4, 32)
        results = [layer(x) for layer in ours]
        assert len(quantised) == 1
        for result, original in zip(results, layers, strict=True):
            assert torch.equal(result, Fp8Linear(original, emulate=True)(x))
        assert shared._kept is None  # nothing outlives the last of them
        ours[0](x)
        x += 1
        assert torch.equal(ours[1](x), Fp8Linear(layers[1], emulate=True)(x))
        other = x.clone()
        assert torch.equal(ours[2](other), Fp8Linear(layers[2], emulate=True)(other))


def test_the_operator_is_foretold() -> None:
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(quantise_operator, (torch.randn(5, 32), None), test_utils=checks)
    torch.library.opcheck(quantise_operator, (torch.randn(5, 32), 16), test_utils=checks)


# --- a pipeline


def test_all_layers_come_and_go(pipe: Any) -> None:
    before, expected = modules(pipe), run(pipe)
    with emulated(pipe) as linears:
        ours = [module for module in modules(pipe).values() if isinstance(module, Fp8Linear)]
        assert linears.layers == linears.of == len(ours)
        assert linears.layers in LAYERS.values()
        assert linears.weight_bytes == sum(layer.original.weight.numel() for layer in ours)
        assert 1e-4 < error(run(pipe), expected) < 0.2
    assert modules(pipe) == before
    assert list(modules(pipe)) == list(before)
    assert torch.equal(run(pipe), expected)
    linears.remove()


def test_what_lies_outside_of_attention_and_feed_forward_stays(pipe: Any) -> None:
    with emulated(pipe):
        left = [name for name, module in modules(pipe).items() if type(module) is nn.Linear]
    assert left
    for name in left:
        assert "blocks." not in name or ".norm" in name or "refiner" in name, name


@pytest.mark.parametrize("family", list(MAKERS))
def test_gelu_moves_into_the_layer_behind_it(family: str) -> None:
    pipe = MAKERS[family]()
    with emulated(pipe):
        assert not any(type(module) in (nn.GELU, GELU) for module in pipe.transformer.transformer_blocks.modules())
        behind = [m.gelu_from for m in modules(pipe).values() if isinstance(m, Fp8Linear) and m.gelu_from is not None]
    width = 2 * 64  # a single block's attention comes before its GELU
    assert sorted(behind) == ([0] * 4 + [width] * 2 if family == "hunyuan" else [0] * 2)


def test_layers_of_somebody_else_are_left_alone() -> None:
    pipe = hunyuan_video()
    dual, single = pipe.transformer.transformer_blocks[0], pipe.transformer.single_transformer_blocks[0]

    class Lora(nn.Linear):
        pass

    dual.attn.to_q = lora = Lora(128, 128)
    dual.ff.net[2].register_forward_hook(lambda *_: None)
    single.attn.to_k.forward = single.attn.to_k.forward
    single.act_mlp.register_forward_pre_hook(lambda *_: None)
    before = modules(pipe)
    with emulated(pipe) as linears:
        assert (linears.layers, linears.of) == (LAYERS["hunyuan"] - 3, LAYERS["hunyuan"])
        after = modules(pipe)
        assert dual.attn.to_q is lora
        for path in ("ff.net.0", "ff.net.2"):
            name = f"transformer_blocks.0.{path}"
            assert after[name] is before[name]
        assert type(single.attn.to_k) is nn.Linear
        assert type(single.act_mlp) is nn.GELU
        assert isinstance(dual.ff.net[0].proj, Fp8Linear)
        assert isinstance(single.proj_out, Fp8Linear)
        assert single.proj_out.gelu_from is None
        mine = nn.Linear(128, 128)
        dual.attn.to_k = mine
    assert dual.attn.to_k is mine
    assert type(dual.attn.to_v) is nn.Linear


def test_no_layer_at_all_is_an_error() -> None:
    pipe = cogvideox()
    for module in modules(pipe).values():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_: None)
    with pytest.raises(RunError, match="no linear layer of the blocks"):
        emulated(pipe)


def test_weights_elsewhere_are_an_error_and_nothing_stays_replaced() -> None:
    pipe = hunyuan_video()
    pipe.transformer.single_transformer_blocks[1].proj_mlp.to("meta")
    before = modules(pipe)
    with pytest.raises(RunError, match="needs the weights on cpu, and some are on meta"):
        emulated(pipe)
    assert modules(pipe) == before


@pytest.mark.parametrize("method", ["adaspa", "adacache", "diffusers"])
def test_any_method_runs_on_it(method: str) -> None:
    pipe = hunyuan_video()
    with emulated(pipe):
        assert run(pipe, method).isfinite().all()


# --- compiled blocks


@pytest.fixture
def _no_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=5):  # of 8, so that fewer layers are more than it allows
        yield
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.usefixtures("_no_graphs")
@pytest.mark.parametrize(("family", "graphs"), [("hunyuan", 5), ("cogvideox", 4)])  # as many as without
def test_compiled_layers_share_graphs(family: str, graphs: int) -> None:
    layers = torch._dynamo.config.recompile_limit + 2
    sizes = {"num_layers": layers, "num_attention_heads": 1}
    pipe = MAKERS[family](**sizes | ({"num_single_layers": layers} if family == "hunyuan" else {}))
    with emulated(pipe):
        expected = run(pipe)
        compile_blocks(family_of(pipe).blocks(pipe.transformer), torch.device("cpu"), backend="aot_eager")
        torch.testing.assert_close(run(pipe), expected)
    assert counters["stats"]["unique_graphs"] == graphs


# --- what is refused, and what is told


def test_a_machine_without_fp8_says_so() -> None:
    with pytest.raises(BackendError, match=r"linear 'fp8' needs a GPU of compute capability 8\.9 or newer, .* on cpu"):
        check_fp8(torch.device("cpu"))


def test_an_older_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A40")
    with pytest.raises(BackendError, match=r"the run is on NVIDIA A40, of 8\.6"):
        check_fp8(torch.device("cuda"))


def test_apply_refuses_a_cpu_and_leaves_the_pipeline_as_it_was() -> None:
    pipe = hunyuan_video()
    before, processors = modules(pipe), pipe.transformer.attn_processors
    with pytest.raises(BackendError, match="needs a GPU of compute capability"):
        adaspa_cli.apply(pipe, linear="fp8")
    assert modules(pipe) == before
    assert pipe.transformer.attn_processors == processors


def test_a_run_without_a_gpu_is_refused_before_the_model_is_loaded(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaspa_cli.jobs import generate
    from tests.pipelines import Listener

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = {"weights": str(hunyuan_folder), "prompt": ["a"], "out": str(tmp_path / "out"), "linear": "fp8"}
    listener = Listener()
    with pytest.raises(BackendError, match="and the run is on cpu"):
        next(generate.generate(resolve(settings), listener))
    assert "loading" not in listener.names()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"linear": "fp4"}, "linear 'fp4' is unknown; did you mean 'fp8'"),
        ({"linear": "fp8", "device": "cpu"}, "linear 'fp8' needs a GPU"),
        ({"linear": "fp8", "dtype": "float16"}, "linear 'fp8' gives bfloat16, and dtype is 'float16'"),
        ({"linear": "fp8", "offload": "group"}, "replaces the layers that offload 'group' moves one by one"),
        ({"linear": "fp8", "method": "diffusers"}, "runs the pipeline unchanged, without the linear 'fp8'"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(settings)


def test_fingerprints_of_runs_without_it_stay() -> None:
    plain, fp8 = resolve({}), resolve({"linear": "fp8"})
    assert "linear" not in plain.flat()
    assert fp8.flat()["linear"] == "fp8"
    assert video_fingerprint(plain, "a", 0) != video_fingerprint(fp8, "a", 0)
    assert video_fingerprint(plain, "a", 0) == video_fingerprint(resolve({"linear": "model"}), "a", 0)


# --- on a GPU with FP8


@pytest.mark.gpu
def test_a_gpu_multiplies_as_the_emulation_does(fp8_device: torch.device) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3072, 512, device=fp8_device, dtype=torch.bfloat16)
    x = torch.randn(2, 301, 3072, device=fp8_device, dtype=torch.bfloat16)
    with torch.inference_mode():
        for options in ({}, {"gelu_from": 1024}, {"shared": SharedInput()}):
            found = Fp8Linear(layer, emulate=False, **options)(x)
            assert found.dtype == torch.bfloat16
            assert error(found, Fp8Linear(layer, emulate=True, gelu_from=options.get("gelu_from"))(x)) < 5e-3


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 64, 127, 256])
@pytest.mark.parametrize("channels", [9216, 12288, 15360])
def test_few_rows_of_many_channels_on_a_gpu(fp8_device: torch.device, rows: int, channels: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(channels, 3072, device=fp8_device, dtype=torch.bfloat16)
    x = torch.randn(1, rows, channels, device=fp8_device, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert error(Fp8Linear(layer, emulate=False)(x), Fp8Linear(layer, emulate=True)(x)) < 5e-3


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_pipeline_on_a_gpu(fp8_device: torch.device, pipe: Any, compiled: bool) -> None:
    pipe.to(fp8_device, torch.bfloat16)
    expected = run(pipe)
    if compiled:
        compile_blocks(family_of(pipe).blocks(pipe.transformer), fp8_device)
    with emulated(pipe):
        emulation = run(pipe)
    with adaspa_cli.apply(pipe, "full", linear="fp8") as handle:
        assert handle.linears is not None
        found = latents(pipe, **SMALL)
    # A product that rounds to another bfloat16 may put an element of the next input on the other side of an edge
    # between two numbers of e4m3. Were all roundings independent, the two would be sqrt(2) times FP8's error apart.
    assert error(found, emulation) < 2**0.5 * error(emulation, expected)
    assert error(found, expected) < 0.2
    if not compiled:
        assert torch.equal(run(pipe), expected)

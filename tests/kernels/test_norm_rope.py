"""Norm and rotary embedding in one pass: against float64, and compiled for Hopper on a machine without a GPU too."""

import json
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

import adaspa_kernels
from tests.forked import Forks
from tests.kernels.conftest import dtypes
from tests.kernels.sm90 import compile_and_listen, compile_for_hopper, run_child

EPS = 1e-3  # large enough to be seen


def reference(
    x: Tensor, norm: str, weight: Tensor | None, bias: Tensor | None, angles: Tensor | None, first: int
) -> Tensor:
    """The definition, in float64; angles [N, D / 2]."""
    y = x.double()
    if norm == "layer":
        y = y - y.mean(-1, keepdim=True)
    if norm != "none":
        y = y / (y.square().mean(-1, keepdim=True) + EPS).sqrt()
    y = y if weight is None else y * weight.double()
    y = y if bias is None else y + bias.double()
    if angles is not None:
        turned = y[:, first : first + len(angles)]
        pairs = torch.view_as_complex(turned.unflatten(-1, (-1, 2)).contiguous())
        turn = torch.polar(torch.ones_like(angles).double(), angles.double())
        turned[:] = torch.view_as_real(pairs * turn[:, None]).flatten(-2)
    return y


def random(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(device, dtype)


def check(out: Tensor, expected: Tensor) -> None:
    """No further from float64 than rounding the exact result once, and twice that."""
    rounding = torch.finfo(out.dtype).eps if out.dtype != torch.float32 else 1e-6
    torch.testing.assert_close(out.double(), expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dtype", dtypes())
@pytest.mark.parametrize(
    ("norm", "weight", "bias", "places", "first"),
    [
        ("rms", True, False, 5, 0),  # HunyuanVideo: video, then text
        ("rms", True, False, 0, 0),  # its text
        ("layer", True, True, 5, 2),  # CogVideoX: text, then video
        ("layer", True, True, 7, 0),
        ("none", False, False, 4, 3),
        ("rms", False, True, 0, 0),
    ],
)
@pytest.mark.parametrize(("heads", "head_dim"), [(3, 64), (24, 128)])
def test_equals_the_definition(
    device: torch.device, dtype: torch.dtype, norm: str, weight: bool, bias: bool, places: int, first: int,
    heads: int, head_dim: int,
) -> None:  # fmt: skip
    x = random(2, 7, heads, head_dim, device=device, dtype=dtype) + 0.5
    vectors = [random(head_dim, device=device, dtype=dtype) if wanted else None for wanted in (weight, bias)]
    angles = random(places, head_dim // 2, device=device) if places else None
    expected = reference(x, norm, *vectors, angles, first)
    rotation = None if angles is None else (angles.cos(), angles.sin())
    options: dict[str, Any] = {"norm": norm, "weight": vectors[0], "bias": vectors[1], "eps": EPS, "first": first}
    out = torch.full_like(x, torch.nan)
    adaspa_kernels.norm_rope(x, out, rotation=rotation, **options)
    check(out, expected)
    adaspa_kernels.norm_rope(x, x, rotation=rotation, **options)
    assert torch.equal(x, out)


def test_parts_of_longer_sequences_and_strided_tables(device: torch.device) -> None:
    projected = random(2, 5, 3 * 2 * 64, device=device).half().unflatten(2, (3, 2, 64))[:, :, 1]  # q of a fused q, k, v
    joint = torch.full((2, 9, 2, 64), torch.nan, dtype=torch.half, device=device)
    angles = random(5, 64, device=device)
    angles[:, 1::2] = angles[:, ::2]  # as diffusers has them: once for each channel
    tables = angles.cos()[:, ::2], angles.sin()[:, ::2]
    adaspa_kernels.norm_rope(projected, joint[:, 3:8], norm="rms", eps=EPS, rotation=tables)
    check(joint[:, 3:8], reference(projected, "rms", None, None, angles[:, ::2], 0))
    assert joint[:, :3].isnan().all()
    assert joint[:, 8:].isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "batch"}, "norm must be one of"),
        ({"x": torch.zeros(1, 2, 3, 48)}, "power of two"),
        ({"out": torch.zeros(1, 2, 3, 32)}, "out must be like x"),
        ({"x": torch.zeros(1, 2, 64, 3).transpose(2, 3)}, "last stride"),
        ({"weight": torch.zeros(32)}, "weight must be"),
        ({"rotation": (torch.zeros(2, 64), torch.zeros(2, 64))}, "cosines and sines must be float32"),
        ({"rotation": (torch.zeros(2, 32).double(), torch.zeros(2, 32))}, "cosines and sines must be float32"),
        ({"rotation": (torch.zeros(2, 32), torch.zeros(2, 64)[:, ::2])}, "like strides"),
    ],
)
def test_wrong_arguments_are_refused(device: torch.device, change: dict[str, Any], message: str) -> None:
    def there(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(there, value))
        if isinstance(value, Tensor):  # with the strides that it has
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device).copy_(value)
        return value

    arguments = {"x": torch.zeros(1, 2, 3, 64), "out": torch.zeros(1, 2, 3, 64)} | change
    with pytest.raises(ValueError, match=message):
        adaspa_kernels.norm_rope(**{name: there(value) for name, value in arguments.items()})


def _compile_all(cases: list[tuple[int, int, str, int]]) -> list[dict[str, Any]]:
    """Compile the kernel from its launcher's own arguments. Runs in the child process."""
    module = sys.modules["adaspa_kernels.norm_rope"]
    kernel, compiled = module.norm_rope_kernel, []

    class Compiler:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **options: compiled.append(compile_and_listen(kernel, *args, grid=grid, **options))

    compile_for_hopper()
    vars(module).update(norm_rope_kernel=Compiler(), check_device=lambda _device: None)
    for heads, head_dim, norm, first in cases:
        x = torch.zeros(1, 40, heads, head_dim, dtype=torch.bfloat16)
        rotation = torch.zeros(30, head_dim // 2), torch.zeros(30, head_dim // 2)
        vector = torch.ones(head_dim, dtype=torch.bfloat16)
        adaspa_kernels.norm_rope(x, x, norm=norm, weight=vector, bias=vector, rotation=rotation, first=first)
    codes = [(result.asm["ptx"], said) for result, said in compiled]
    return [{"loads": x.count("ld.global.v4"), "stores": x.count("st.global.v4"), "log": said} for x, said in codes]


def test_compiles_to_wide_loads_without_spills(hopper: Forks) -> None:
    for result in run_child(hopper, __file__, [(24, 128, "rms", 0), (48, 64, "layer", 226)]):
        assert result["loads"], result
        assert result["stores"], result
        assert "0 bytes spill stores, 0 bytes spill loads" in result["log"], result


if __name__ == "__main__":
    print(json.dumps(_compile_all(json.loads(sys.argv[1]))))  # noqa: T201

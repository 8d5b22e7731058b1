"""Rows to e4m3 in one pass: against PyTorch bit by bit, and compiled for Hopper on a machine without a GPU too."""

import json
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton", reason="triton is not installed")

import adaspa_kernels
from tests.forked import Forks
from tests.kernels.conftest import dtypes
from tests.kernels.sm90 import compile_and_listen, compile_for_hopper, run_child

FP8, LARGEST = torch.float8_e4m3fn, 448.0


def reference(x: Tensor, gelu_from: int | None = None) -> tuple[Tensor, Tensor]:
    """The definition; bits as uint8 [M, K] and scales [M, 1]."""
    y = x.float()
    if gelu_from is not None:
        y = torch.cat([y[:, :gelu_from], F.gelu(y[:, gelu_from:].double(), approximate="tanh").float()], 1)
    largest = y.abs().amax(1, keepdim=True).clamp(min=1e-12)
    whole = torch.full_like(largest, LARGEST)  # by a number instead, PyTorch multiplies with the reciprocal on a GPU
    q = (y * (whole / largest)).clamp(-LARGEST, LARGEST).to(FP8)
    return q.view(torch.uint8), largest / whole


def rows(columns: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros, tiny rows, an outlier, wide ranges down to the subnormal numbers of e4m3, and ties."""
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(24, columns, generator=generator)
    x[0] = 0
    x[1] *= 2e-5
    x[2, 0] = 1000
    x[3:12] *= torch.exp(3 * torch.randn(9, columns, generator=generator))
    x[12, 0] = LARGEST  # this row's scale is 1, and 9 / 8 steps between its numbers of e4m3 are ties
    x[12, 1:] = (1 + torch.arange(1, columns) % 16 / 16) * 2.0 ** (torch.arange(1, columns) % 16 - 9)
    return x.clamp(-6e4, 6e4).to(device, dtype)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", dict.fromkeys([*dtypes(), torch.bfloat16]))
@pytest.mark.parametrize("columns", [1, 100, 3072, 15_360])
def test_equals_the_definition_bit_by_bit(device: torch.device, dtype: torch.dtype, columns: int) -> None:
    x = rows(columns, device, dtype)
    q, scale = adaspa_kernels.quantise_rows(x)
    bits, scales = reference(x)
    assert q.dtype == FP8
    assert torch.equal(q.view(torch.uint8), bits)
    assert torch.equal(scale, scales)


@pytest.mark.parametrize(("columns", "gelu_from"), [(100, 0), (3072, 0), (3072, 1000), (3072, 3071)])
@pytest.mark.filterwarnings("ignore:overflow")  # of the interpreter: the exponential of a large number is infinite
def test_gelu_comes_before(device: torch.device, columns: int, gelu_from: int) -> None:
    """Up to the rounding of float32: where that decides, the neighbouring number of e4m3."""
    x = rows(columns, device, torch.float16)
    x = torch.cat([x, torch.linspace(-12, 12, columns, device=device, dtype=x.dtype)[None]])
    q, scale = adaspa_kernels.quantise_rows(x, gelu_from=gelu_from)
    bits, scales = reference(x, gelu_from)
    torch.testing.assert_close(scale, scales, rtol=2e-6, atol=0)
    apart = (q.view(torch.uint8).int() - bits.int()).abs()
    apart[(q.float() == 0) & (bits & 0x7F == 0)] = 0  # zeros of both signs
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 0.01


def test_strided_rows(device: torch.device) -> None:
    x = rows(96, device, torch.float16)
    q, scale = adaspa_kernels.quantise_rows(x[::2, 16:80])
    bits, scales = reference(x[::2, 16:80])
    assert torch.equal(q.view(torch.uint8), bits)
    assert torch.equal(scale, scales)
    assert q.is_contiguous()


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN")
def test_what_is_not_finite_stays_so(device: torch.device) -> None:
    x = torch.ones(3, 32, device=device, dtype=torch.float16)
    x[0, 5], x[1, 5], x[2] = torch.nan, torch.inf, torch.nan
    q, scale = adaspa_kernels.quantise_rows(x)
    values = q.float() * scale
    assert values[0, 5].isnan()
    assert not values[1].isfinite().any()
    assert values[2].isnan().all()


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(2, 3, 4), {}, r"x must be \[M, K\]"),
        (torch.zeros(0, 4), {}, "not empty"),
        (torch.zeros(1, 40_000), {}, "at most 32768"),
        (torch.zeros(4, 4, dtype=torch.double), {}, "x must be one of"),
        (torch.zeros(4, 6).T, {}, "last stride"),
        (torch.zeros(4, 6), {"gelu_from": 6}, "gelu_from must be a column"),
    ],
)
def test_wrong_arguments_are_refused(device: torch.device, x: Tensor, options: dict[str, Any], message: str) -> None:
    dtype = torch.half if device.type == "cuda" and x.dtype == torch.float32 else x.dtype
    given = torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=device)
    with pytest.raises(ValueError, match=message):
        adaspa_kernels.quantise_rows(given, **options)


def _compile_all(cases: list[tuple[int, int | None]]) -> list[dict[str, Any]]:
    """Compile the kernel from its launcher's own arguments. Runs in the child process."""
    module = sys.modules["adaspa_kernels.quantise"]
    kernel, compiled = module.quantise_rows_kernel, []

    class Compiler:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **options: compiled.append(
                compile_and_listen(kernel, *args, grid=grid, **(options | {"ENCODE": False}))
            )

    compile_for_hopper()
    vars(module).update(quantise_rows_kernel=Compiler(), check_device=lambda _device: None)
    for columns, gelu_from in cases:
        adaspa_kernels.quantise_rows(torch.zeros(4, columns, dtype=torch.bfloat16), gelu_from=gelu_from)
    codes = [(result.asm["ptx"], said) for result, said in compiled]
    return [
        {
            "loads": x.count("ld.global.v4"),
            "stores": x.count("st.global.v4") + x.count("st.global.v2"),
            "conversions": x.count("cvt.rn.satfinite.e4m3x2"),
            "log": said,
        }
        for x, said in codes
    ]


def test_compiles_to_wide_accesses_without_spills(hopper: Forks) -> None:
    for result in run_child(hopper, __file__, [(3072, None), (12_288, 0), (15_360, 3072)]):
        assert result["loads"], result
        assert result["stores"], result
        assert result["conversions"], result
        assert "0 bytes spill stores, 0 bytes spill loads" in result["log"], result


if __name__ == "__main__":
    print(json.dumps(_compile_all(json.loads(sys.argv[1]))))  # noqa: T201

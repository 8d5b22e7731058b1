"""What holds of every kernel, compiled for Hopper: sums of products are fused, though Triton's default is off; strides
are multiplied in 64 bits.

As in test_compile_sm90.py: the launchers are called for real, up to the launch itself, in a process of its own.
"""

import json
import pkgutil
import re
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

import adaspa_kernels
from tests.forked import Forks
from tests.kernels.sm90 import compile_for_hopper, run_child

# The others add up, compare, count or set bits; add_affine adds within its product.
WITH_FUSED = {
    "block_sparse_kernel", "hopper_block_sparse_kernel", "block_sums_kernel", "hopper_block_sums_kernel",
    "norm_rope_kernel", "quantise_rows_kernel",
}  # fmt: skip


def _compile_all() -> list[dict[str, Any]]:
    """Compile each kernel as it is launched, and not fused; what the PTX holds. Runs in the child process."""
    import torch
    from triton import knobs
    from triton.runtime.jit import JITFunction

    from adaspa_kernels import hopper_block_sparse, launch
    from scripts import sanitise_kernels

    found: dict[str, dict[str, Any]] = {}
    compiled = JITFunction.run

    def compile_both(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:  # noqa: ARG001
        if kernel.__name__ in found:
            return
        if "ENCODE" in options:  # of FP8, for the interpreter
            options["ENCODE"] = False
        launched = compiled(kernel, *args, grid=grid, warmup=True, **options)
        options["enable_fp_fusion"] = False
        unfused = compiled(kernel, *args, grid=grid, warmup=True, **options)
        found[kernel.__name__] = {
            "name": kernel.__name__,
            "asked": launched.metadata.enable_fp_fusion,
            "fused": launched.asm["ptx"].count("fma.rn.f32"),
            "unfused": unfused.asm["ptx"].count("fma.rn.f32"),
            "narrow": re.findall(r".*= (?:arith\.muli|tt\.splat) .*stride.*i32.*", launched.asm["ttgir"]),
        }

    def rows(head_dim: int) -> tuple[torch.Tensor, ...]:
        x = torch.zeros(1, sanitise_kernels.TOKENS, sanitise_kernels.HEADS, head_dim, dtype=torch.bfloat16)
        return (x.transpose(1, 2),) * 3

    compile_for_hopper()
    knobs.language.default_fp_fusion = False
    JITFunction.run = compile_both
    vars(launch).update(unavailable=lambda _: None, hopper_unavailable=lambda *_: None)
    sanitise_kernels._rows = rows
    vars(hopper_block_sparse).update(multiprocessors=lambda _: 132, keeps_step=lambda _: True)
    for path in ("portable", "hopper"):
        sanitise_kernels._sparse(path, 64, 64, pooled=True)
        sanitise_kernels._sums(path, 64, 64)
    sanitise_kernels._select()
    sanitise_kernels._around()
    return list(found.values())


@pytest.fixture(scope="module")
def results(hopper: Forks) -> dict[str, dict[str, Any]]:
    return {result["name"]: result for result in run_child(hopper, __file__, [])}


def test_no_kernel_is_left_out(results: dict[str, dict[str, Any]]) -> None:
    modules = [module.name for module in pkgutil.iter_modules(adaspa_kernels.__path__, "adaspa_kernels.")]
    kernels = {
        name for module in modules for name in vars(__import__(module, fromlist=["_"])) if name.endswith("_kernel")
    }
    assert set(results) == kernels


def test_sums_of_products_are_fused_although_the_default_is_off(results: dict[str, dict[str, Any]]) -> None:
    for name, result in results.items():
        assert result["asked"], result
        assert (result["fused"] > 0) == (name in WITH_FUSED), result
        assert result["unfused"] == 0, result


def test_strides_are_multiplied_in_64_bits(results: dict[str, dict[str, Any]]) -> None:
    for result in results.values():
        assert not result["narrow"], result


if __name__ == "__main__":
    print(json.dumps(_compile_all()))  # noqa: T201

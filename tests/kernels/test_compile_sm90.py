"""All kernels compile for Hopper, on a machine without a GPU too, to warpgroup matrix instructions and bulk copies.

The launchers are called for real, up to the launch itself: its arguments then go to Triton's compiler with a target
of compute capability 9.0. In a process of its own, because this one may have its kernels built for the interpreter.
"""

import functools
import importlib
import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from tests.forked import Forks
from tests.kernels.sm90 import compile_and_listen, compile_for_hopper, run_child

SHARED_MEMORY = 232_448  # of one multiprocessor of an H200


def _compile(
    kind: str, head_dim: int, block: int, tokens: int, tma: bool, path: str, dtype: str,
    launch: int = 0, row_stride: int = 1, summaries: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Compile one kernel from its launcher's own arguments; return what the PTX holds. Runs in the child process.

    Of several launches, such as the one that computes rows again, ``launch`` is compiled.
    """
    import torch

    import adaspa_kernels

    launcher = sys.modules[f"adaspa_kernels.{kind}"]
    module = launcher if path == "portable" else importlib.import_module(f"adaspa_kernels.hopper_{kind}")
    name = f"{kind}_kernel" if path == "portable" else f"hopper_{kind}_kernel"
    calls: list[tuple[Any, dict[str, Any]]] = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **options: calls.append((args, options | {"grid": grid}))

    compile_for_hopper()
    replaced = {
        "check_device": lambda _: None,
        "uses_tma": lambda *_: tma,
        "choose_path": lambda *_: path,
        "tuned": lambda kernel, *_: (kernel, {}),
        "multiprocessors": lambda _: 132,
        "keeps_step": lambda _: True,
    }
    kernel = getattr(module, name)
    for place in (launcher, module):
        vars(place).update({key: value for key, value in replaced.items() if key in vars(place)})
    vars(module)[name] = Recorder()
    x = torch.zeros(1, tokens, 2, head_dim, dtype=getattr(torch, dtype)).transpose(1, 2)
    blocks = -(-tokens // block)
    if kind == "block_sparse":
        counts = torch.zeros(2, blocks, dtype=torch.int32)
        indices = torch.zeros(2, blocks, 4, dtype=torch.int16)
        means, words = torch.zeros(1, 2, blocks, head_dim, dtype=x.dtype), torch.zeros(2, blocks, 4, dtype=torch.int32)
        pooled = adaspa_kernels.Summaries(means, means, words, range(blocks), block) if summaries else None
        adaspa_kernels.block_sparse_attention(
            x, x, x, counts, indices, key_blocks=blocks, block_size=(block, block), scale=0.1, summaries=pooled
        )
    else:
        lse = torch.zeros(1, 2, tokens)
        adaspa_kernels.block_sums(x, x, lse, block_size=(block, block), scale=0.1, row_stride=row_stride)
    vars(module)[name] = kernel
    args, options = calls[launch]
    if path == "portable":
        options |= {"num_warps": 8 if block == 128 or kind == "block_sums" else 4, "num_stages": 2}  # wins on an H200
    compiled, said = compile_and_listen(kernel, *args, **options)
    ptx = compiled.asm["ptx"]
    multipliers = options.get("TEAMS", 3) * options.get("READERS", 1)
    return {
        "wgmma": ptx.count("wgmma.mma_async"),
        "shapes": sorted(set(re.findall(r"wgmma\.mma_async\S*\.(m64n\d+k16)", ptx))),
        "registers": sorted({int(count) for count in re.findall(r"setmaxnreg\S+\s+(\d+)", ptx)}),
        "assembler": said,
        "spills": _spills_among_products(compiled.asm["cubin"], multipliers) if path == "hopper" else None,
        "bulk": ptx.count("cp.async.bulk.tensor"),
        "async": ptx.count("cp.async.cg"),
        "shared": compiled.metadata.shared,
    }


@functools.cache  # some cases are one kernel
def _spills_among_products(cubin: bytes, multipliers: int) -> int:
    """How often a role's registers go to local memory between its first and its last product.

    The roles stand one after the other in the code, with as many products each.
    """
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([knobs.nvidia.nvdisasm.path, file.name], capture_output=True, text=True, check=True)
    operations = re.findall(r"\b(HGMMA|LDL|STL)\b", done.stdout)
    products = operations.count("HGMMA") // multipliers
    seen = spills = 0
    for operation in operations:
        if operation == "HGMMA":
            seen += 1
        elif products and seen % products:
            spills += 1
    return spills


@pytest.fixture
def child(hopper: Forks) -> Any:
    """Run all compilations of one kernel in one process."""
    return lambda *cases: run_child(hopper, __file__, cases)


@pytest.mark.parametrize("kind", ["block_sparse", "block_sums"])
def test_bulk_copies_and_warpgroup_products(child: Any, kind: str) -> None:
    cases = [(kind, size, size, 517, True, "portable", "bfloat16") for size in (64, 128)]
    for case, result in zip(cases, child(*cases), strict=True):
        assert result["wgmma"], case
        assert result["bulk"], case
        assert result["shared"] <= SHARED_MEMORY, case


def test_pointers_are_copied_asynchronously(child: Any) -> None:
    cases = [(kind, 128, 64, 512, False, "portable", "bfloat16") for kind in ("block_sparse", "block_sums")]
    for case, result in zip(cases, child(*cases), strict=True):
        assert result["wgmma"], case
        assert not result["bulk"], case
        assert result["async"], case
        assert result["shared"] <= SHARED_MEMORY, case


# Registers of a copying thread and a multiplying one; Triton adds those of warps that wait (below) and of the start.
_TWO_WARPGROUPS, _THREE_WARPGROUPS = {40, 232}, {32, 160}
# Bytes a thread stored to local memory and loaded from it, and how often among a row's products, by Triton's release;
# 3.9 assembles for Hopper with ptxas 13. Keys: block, head dim, dtype, and 1 for the launch that computes rows again.
_SPILLED = {
    (128, 128, "bfloat16"): {"3.6": (8, 8, 0), "3.7": (4, 4, 0), "3.8": (8, 8, 0), "3.9": (276, 360, 34)},
    (128, 128, "bfloat16", 1): {"3.6": (4, 4, 0), "3.9": (248, 268, 30)},
    (128, 128, "float16"): {"3.6": (16, 16, 0), "3.7": (16, 16, 0), "3.9": (236, 252, 26)},
    (64, 64, "bfloat16"): {"3.9": (304, 412, 0)},
    (64, 64, "bfloat16", 1): {"3.9": (152, 204, 35)},
    (64, 64, "float16"): {"3.9": (168, 220, 39)},
}


@pytest.mark.parametrize(
    ("kind", "block", "head_dim", "registers"),
    [
        ("block_sparse", 64, 128, _TWO_WARPGROUPS),
        ("block_sparse", 64, 64, _THREE_WARPGROUPS),
        ("block_sparse", 128, 128, _TWO_WARPGROUPS),
        ("block_sparse", 128, 64, _TWO_WARPGROUPS),
        ("block_sums", 64, 128, _THREE_WARPGROUPS),
        ("block_sums", 64, 64, _THREE_WARPGROUPS),
    ],
)
def test_hopper_kernels_specialise_warps_and_keep_registers(
    child: Any, kind: str, block: int, head_dim: int, registers: set[int]
) -> None:
    cases = [
        (kind, head_dim, block, tokens, True, "hopper", dtype)
        for tokens in (1, 517)
        for dtype in ("bfloat16", "float16")
    ]
    if kind == "block_sparse":
        cases += [(*case, 1) for case in cases if case[-1] == "bfloat16"]
    else:
        # Strides of 2 and 4 are launched as 1 is: at one head dimension only.
        cases += [(*cases[0], 0, row_stride) for row_stride in ((2, 4, 8, 16) if head_dim == 128 else (8, 16))]
    for case, result in zip(cases, child(*cases), strict=True):
        assert "m64n128k16" in result["shapes"], case
        assert result["bulk"], case
        assert not result["async"], case
        assert set(result["registers"]) >= registers, case
        assert result["shared"] <= SHARED_MEMORY, case
        by_release = _SPILLED.get((block, head_dim, *case[6:]), {}) if kind == "block_sparse" else {}
        stored, loaded, among = by_release.get(version("triton")[:3], (0, 0, 0))
        assert f"{stored} bytes spill stores, {loaded} bytes spill loads" in result["assembler"], case
        assert result["spills"] == among, case
        assert "serialized" not in result["assembler"], case


# The same with summaries, and how often registers go to memory among a row's products: before, between and after the
# loops, not within one. Keys: block, head dim, and tokens, 517 of which have a ragged last summary.
_SPILLED_WITH_SUMMARIES = {
    (64, 64, 512): {"3.6": (164, 344, 34), "3.7": (344, 484, 11), "3.8": (168, 340, 33), "3.9": (400, 648, 83)},
    (64, 64, 517): {"3.6": (256, 456, 59), "3.7": (376, 516, 12), "3.8": (196, 360, 45), "3.9": (2008, 2304, 909)},
    (64, 128, 512): {"3.6": (92, 148, 3), "3.7": (96, 156, 4), "3.8": (52, 104, 4), "3.9": (88, 264, 10)},
    (128, 128, 517): {"3.6": (144, 208, 4), "3.7": (164, 196, 4), "3.8": (112, 168, 5), "3.9": (572, 900, 176)},
}


def test_summaries_take_no_more_registers_than_are_said(child: Any) -> None:
    keys = list(_SPILLED_WITH_SUMMARIES)
    cases = [
        ("block_sparse", head_dim, block, tokens, True, "hopper", "bfloat16", 0, 1, True)
        for block, head_dim, tokens in keys
    ]
    for key, case, result in zip(keys, cases, child(*cases), strict=True):
        assert "m64n128k16" in result["shapes"], case
        assert result["shared"] <= SHARED_MEMORY, case
        assert "serialized" not in result["assembler"], case
        stored, loaded, among = _SPILLED_WITH_SUMMARIES[key][version("triton")[:3]]
        assert f"{stored} bytes spill stores, {loaded} bytes spill loads" in result["assembler"], case
        assert result["spills"] == among, case


if __name__ == "__main__":
    print(json.dumps([_compile(*case) for case in json.loads(sys.argv[1])]))  # noqa: T201

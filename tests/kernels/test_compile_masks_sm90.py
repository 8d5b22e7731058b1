"""The kernels of masks compile for Hopper, on a machine without a GPU too, and keep their rows in registers.

As in test_compile_sm90.py: the launchers are called for real, up to the launch itself, in a process of its own.
"""

import json
import sys
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from tests.forked import Forks
from tests.kernels.sm90 import compile_and_listen, compile_for_hopper, run_child

KERNELS = {
    "selection": ("weigh_rows_kernel", "pack_rows_kernel"),
    "row_counts": ("count_above_kernel", "listed_mass_kernel"),
    "mask_lists": ("count_flags_kernel", "list_flags_kernel", "flag_lists_kernel"),
}
NO_SPILLS = "0 bytes spill stores, 0 bytes spill loads"


def _compile_all(key_blocks: list[int]) -> list[dict[str, Any]]:
    """Compile every kernel from its launcher's own arguments; what the assembler says. Runs in the child process."""
    import torch

    import adaspa_kernels
    from adaspa_kernels import launch

    found: list[dict[str, Any]] = []

    class Compiler:
        def __init__(self, name: str, kernel: Any) -> None:
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def compile_for(*args: Any, **options: Any) -> None:
                compiled, said = compile_and_listen(self.kernel, *args, grid=grid, **options)
                found.append({"name": self.name, "warps": compiled.metadata.num_warps, "assembler": said})

            return compile_for

    compile_for_hopper()
    launch.unavailable = lambda _: None
    for module, names in KERNELS.items():
        namespace = vars(sys.modules[f"adaspa_kernels.{module}"])
        namespace.update({name: Compiler(name, namespace[name]) for name in names} | {"check_device": lambda _: None})
    for blocks in key_blocks:
        video = range(max(1, blocks - 5))
        W = torch.zeros(1, 2, 3, blocks)
        dtype = torch.int16 if blocks < 32_768 else torch.int32
        for candidates in ((max(1, blocks // 5),), (1, max(1, blocks // 5), len(video))):
            weighed = adaspa_kernels.weigh_rows(W, range(2), video, candidates)
        adaspa_kernels.pack_rows(W, range(2), video, weighed, torch.ones(1, 2, dtype=torch.int64), dtype)
        adaspa_kernels.count_above(W[0], range(2), video, torch.zeros(15, dtype=torch.int32))
        lists = torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 3, 7, dtype=dtype)
        adaspa_kernels.listed_mass(W[0], *lists)
        for flags in (torch.zeros(3, blocks, dtype=torch.bool), torch.zeros(3, -(-blocks // 32), dtype=torch.int32)):
            counts = adaspa_kernels.count_flags(flags, blocks)
            indices = adaspa_kernels.list_flags(flags, counts, blocks, 7, dtype)
            adaspa_kernels.flag_lists(counts, indices, blocks, words=flags.dtype == torch.int32)
    return found


def compile_all(hopper: Forks, *key_blocks: int) -> list[dict[str, Any]]:
    results = run_child(hopper, __file__, key_blocks)
    assert len(results) == 11 * len(key_blocks)
    return results


def test_a_row_of_a_video_stays_in_the_registers_of_one_warp(hopper: Forks) -> None:
    """HunyuanVideo at 720p has 1,861 key blocks."""
    for result in compile_all(hopper, 1861):
        assert NO_SPILLS in result["assembler"], result
        if result["name"] in KERNELS["selection"] + KERNELS["row_counts"]:
            assert result["warps"] == 1
            assert "used 0 barriers" in result["assembler"], result


@pytest.mark.slow
def test_from_one_block_to_the_longest_row(hopper: Forks) -> None:
    for result in compile_all(hopper, 1, 16_384, 32_768):
        assert "registers" in result["assembler"], result


if __name__ == "__main__":
    print(json.dumps(_compile_all(json.loads(sys.argv[1]))))  # noqa: T201

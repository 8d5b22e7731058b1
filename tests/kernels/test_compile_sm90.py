"""Both kernels compile for Hopper, on a machine without a GPU too, to warpgroup matrix instructions and bulk copies.

The launchers are called for real, up to the launch itself: its arguments then go to Triton's compiler with a target
of compute capability 9.0. In a process of its own, because this one may have its kernels built for the interpreter.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

SHARED_MEMORY = 232_448  # of one multiprocessor of an H200


def _compile(kind: str, head_dim: int, block: int, tokens: int, tma: bool) -> dict[str, int]:
    """Compile one kernel from its launcher's own arguments; return what the PTX holds. Runs in the child process."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    import adaspa_kernels

    module = sys.modules[f"adaspa_kernels.{kind}"]
    calls: list[tuple[Any, dict[str, Any]]] = []

    class Target:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return device

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **options: calls.append((args, options | {"grid": grid}))

    driver.set_active(Target())
    replaced = {
        "check_device": lambda _: None,
        "shared_memory": lambda _: SHARED_MEMORY,
        "uses_tma": lambda *_: tma,
        f"{kind}_kernel": Recorder(),
    }
    originals = {name: getattr(module, name) for name in replaced}
    vars(module).update(replaced)
    x = torch.zeros(1, tokens, 2, head_dim, dtype=torch.bfloat16).transpose(1, 2)
    blocks = -(-tokens // block)
    if kind == "block_sparse":
        counts = torch.zeros(2, blocks, dtype=torch.int32)
        indices = torch.zeros(2, blocks, 4, dtype=torch.int16)
        adaspa_kernels.block_sparse_attention(
            x, x, x, counts, indices, key_blocks=blocks, block_size=(block, block), scale=0.1
        )
    else:
        adaspa_kernels.block_sums(x, x, torch.zeros(1, 2, tokens), block_size=(block, block), scale=0.1)
    vars(module).update(originals)
    ((args, options),) = calls
    compiled = originals[f"{kind}_kernel"].warmup(*args, **options)
    ptx = compiled.asm["ptx"]
    return {
        "wgmma": ptx.count("wgmma.mma_async"),
        "bulk": ptx.count("cp.async.bulk.tensor"),
        "async": ptx.count("cp.async.cg"),
        "shared": compiled.metadata.shared,
    }


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run all compilations of one kernel in one process: starting it costs as much as a kernel."""
    root = Path(__file__).resolve().parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root / "kernels"), str(root), *sys.path])
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))

    def compile_all(*cases: tuple[str, int, int, int, bool]) -> list[dict[str, int]]:
        done = subprocess.run(
            [sys.executable, __file__, json.dumps(cases)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results: list[dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
        return results

    return compile_all


@pytest.mark.parametrize("kind", ["block_sparse", "block_sums"])
def test_bulk_copies_and_warpgroup_products(child: Any, kind: str) -> None:
    cases = [(kind, head_dim, block, 517, True) for head_dim in (64, 128) for block in (64, 128)]
    for case, result in zip(cases, child(*cases), strict=True):
        assert result["wgmma"], case
        assert result["bulk"], case
        assert result["shared"] <= SHARED_MEMORY, case


@pytest.mark.parametrize("kind", ["block_sparse", "block_sums"])
def test_pointers_are_copied_asynchronously(child: Any, kind: str) -> None:
    (result,) = child((kind, 128, 64, 512, False))
    assert result["wgmma"]
    assert not result["bulk"]
    assert result["async"]
    assert result["shared"] <= SHARED_MEMORY


if __name__ == "__main__":
    print(json.dumps([_compile(*case) for case in json.loads(sys.argv[1])]))  # noqa: T201

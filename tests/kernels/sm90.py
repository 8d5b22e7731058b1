"""Compiling for compute capability 9.0 on a machine without a GPU, in a process of its own.

The process of the tests may have its kernels built for the interpreter; a child does not. A test module is its own
child: run as a program it reads cases as JSON from its first argument and prints results as JSON.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


def compile_for_hopper() -> None:
    """From here on Triton compiles for a Hopper GPU that is not there. For the child."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    class Target:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return device

    driver.set_active(Target())
    knobs.nvidia.dump_ptxas_log = True


_SAID: dict[str, str] = {}  # what the assembler said of each kernel when it was compiled


def compile_and_listen(kernel: Any, *args: Any, **options: Any) -> tuple[Any, str]:
    """Compile; what Triton's assembler said of registers, spills and serialised products. For the child."""
    said = io.StringIO()
    with redirect_stdout(said):
        compiled = kernel.warmup(*args, **options)
    text = _SAID.setdefault(compiled.hash, said.getvalue())
    assert "registers" in text
    return compiled, text


def run_child(file: str, cases: Sequence[Any], cache: Path) -> list[dict[str, Any]]:
    """Run a test module as its own child; ``cache`` is for what Triton compiles, and empty."""
    root = Path(__file__).resolve().parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root / "kernels"), str(root), *sys.path])
    environment["TRITON_CACHE_DIR"] = str(cache)
    done = subprocess.run(
        [sys.executable, file, json.dumps(cases)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results

"""Compiling for compute capability 9.0 on a machine without a GPU, in a process of its own.

The process of the tests may have its kernels built for the interpreter; a child does not. A test module is its own
child: run as a program it reads cases as JSON from its first argument and prints results as JSON. Children are forks of
this file's process, which has imported torch and Triton.
"""

import importlib
import io
import json
import os
import runpy
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from tests.forked import Forks, serve


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


def run_child(forks: Forks, file: str, cases: Sequence[Any]) -> list[dict[str, Any]]:
    """Run a test module as its own child."""
    done = forks.run(file, json.dumps(cases))
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results


def _run_module(arguments: list[str]) -> int:
    """A cache of its own, so that the assembler runs, and is heard."""
    sys.argv = arguments
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        runpy.run_path(arguments[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    for module in ("pytest", "adaspa_kernels", "triton.backends.compiler", "triton.experimental.gluon"):
        importlib.import_module(module)
    serve(_run_module)

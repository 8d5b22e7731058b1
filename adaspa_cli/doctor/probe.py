"""Facts that need the heavy libraries, collected in a separate process, so that a crash there ends nothing else.

The process writes a line of JSON after each thing it found, so that what came before a crash is known.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaspa_cli.doctor.facts import Gpu, Kernels, Probed
from adaspa_cli.errors import AdaspaError, shortened
from adaspa_cli.files.typed_json import from_json, to_json

if TYPE_CHECKING:
    import torch

PATIENCE = 300.0  # seconds; kernels are compiled meanwhile
_LONGEST = 300  # letters of an error
_STARTS = "import sys; from adaspa_cli.doctor.probe import main; main(sys.argv[1], sys.argv[2])"


def probe(device: str) -> Probed:
    """Check the libraries, and the device that a run with ``--device`` would use."""
    with tempfile.TemporaryDirectory(prefix="adaspa-doctor-") as folder:
        file = Path(folder) / "found"
        command = [sys.executable, "-c", _STARTS, str(file), device]
        paths = os.pathsep.join(path for path in sys.path if path)
        try:
            done = subprocess.run(
                command,
                env=os.environ | {"PYTHONPATH": paths},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PATIENCE,
                check=False,
            )
            died = None if done.returncode == 0 else _ending(done.returncode, done.stderr)
        except subprocess.TimeoutExpired:
            died = f"it did not end within {PATIENCE:.0f} s"
        return read(file.read_text(encoding="utf-8") if file.exists() else "", died)


def _ending(code: int, said: str) -> str:
    how = f"it was killed by signal {-code}" if code < 0 else f"it ended with {code}"
    last = said.strip().splitlines()[-1:]
    return f"{how}{''.join(f': {shortened(line, _LONGEST)}' for line in last)}"


def read(lines: str, died: str | None) -> Probed:
    """What the process wrote: of several values for one thing the last."""
    found: dict[str, Any] = {}
    at_work = ""
    for line in lines.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            break  # the line that it wrote when it died
        at_work = content.pop("begins", at_work)
        found |= content
    if died is not None:
        found["died"] = f"{died}, at {at_work}" if at_work else died
    return from_json(Probed, found)


def main(file: str, device: str) -> None:
    """The process: writes what it finds to a file."""
    warnings.simplefilter("ignore")
    with Path(file).open("w", encoding="utf-8") as out:

        def write(**found: Any) -> None:
            out.write(json.dumps(to_json(found)) + "\n")
            out.flush()

        _look(device, write)


def _look(device: str, write: Callable[..., None]) -> None:
    errors: dict[str, str] = {}

    def imported(name: str) -> Any:
        """The module, or None and a line about why it cannot be imported."""
        write(begins=f"import {name}")
        try:
            return import_module(name)
        except Exception as error:
            errors[name] = _line(error)
            write(errors=errors)
            return None

    torch = imported("torch")
    for name in ("triton", "torchvision"):
        if find_spec(name) is not None:
            imported(name)
    if torch is not None:
        _look_at_device(torch, device, write)
        if imported("transformers") and imported("diffusers"):
            _look_at_pipelines(write, errors)


def _look_at_device(torch: Any, device: str, write: Callable[..., None]) -> None:
    from adaspa_cli.models.loading import choose_device, choose_dtype

    write(begins="a look at the GPUs", cuda=torch.version.cuda)
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        write(gpu_problem=_line(error))
    write(gpus=_gpus(torch))
    try:
        chosen = choose_device(device)
    except AdaspaError as error:
        write(device_problem=error.message)
        return
    dtype = choose_dtype("auto", chosen)
    write(device=str(chosen), dtype=str(dtype).removeprefix("torch."))
    _look_at_kernels(chosen, dtype, write)


def _gpus(torch: Any) -> list[Gpu]:
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found.append(Gpu(facts.name, f"{facts.major}.{facts.minor}", int(total), int(free)))
    return found


def _look_at_kernels(device: torch.device, dtype: torch.dtype, write: Callable[..., None]) -> None:
    from adaspa_cli.doctor.kernels import BACKENDS, look_at_backend
    from adaspa_cli.models.fp8_linear import check_fp8

    found: list[Kernels] = []
    for backend in BACKENDS:
        write(begins=f"attention backend {backend}")
        found.append(look_at_backend(backend, device, dtype))
        write(kernels=found)
    try:
        check_fp8(device)
    except AdaspaError as error:
        write(fp8_problem=error.message)


def _look_at_pipelines(write: Callable[..., None], errors: dict[str, str]) -> None:
    import diffusers

    from adaspa_cli.config.families import FAMILIES

    names = [facts.pipeline for facts in FAMILIES]
    present = dir(diffusers)
    write(lacking=[name for name in names if name not in present])
    write(begins=f"import diffusers.{names[0]}")
    try:
        getattr(diffusers, names[0])
    except Exception as error:
        write(errors=errors | {"diffusers": _line(error)})


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return shortened(f"{type(error).__name__}: {text}" if text else type(error).__name__, _LONGEST)

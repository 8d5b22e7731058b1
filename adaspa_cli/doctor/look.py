"""Collects facts about the machine, without the network and without importing torch."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from adaspa_cli.config.catalogue import Entry, catalogue
from adaspa_cli.config.devices import cpu_name, machine_memory, may_have_gpu
from adaspa_cli.config.hub import cached
from adaspa_cli.doctor.facts import Facts, Ffmpeg, Folder, Hub, Model
from adaspa_cli.doctor.probe import probe
from adaspa_cli.doctor.requirements import extras, libraries
from adaspa_cli.errors import OutputError, shortened
from adaspa_cli.files.folders import check_folder
from adaspa_cli.models.memory import memory_by_offload

_ENCODERS = ("libx264", "libx264rgb")  # that videos, and frames kept bit by bit, are written with


def look(out: str, device: str) -> Facts:
    """All facts.

    Args:
        out: folder of the videos.
        device: that a run would take: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """
    free, memory = machine_memory()
    return Facts(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory=memory,
        memory_free=free,
        libraries=libraries(),
        extras=extras(),
        probed=probe(device),
        out=look_at_folder(out),
        hub=look_at_hub(),
        ffmpeg=look_at_ffmpeg(),
        driver=_driver(),
        driver_cuda=_driver_cuda(),
        driver_there=may_have_gpu(),
    )


def model_facts(entry: Entry, linear: str | None) -> Model:
    """What a model needs from a machine, with linear layers in a dtype of ``--linear``."""
    gated = entry.card is not None and entry.card.gated
    memory = {offload: held.total for offload, held in memory_by_offload(entry.name, linear or "model").items()}
    return Model(entry.name, entry.checkpoint, gated, entry.disk, memory)


def look_at_folder(path: str) -> Folder:
    """A folder that may not be there yet: the one that it would be made in counts."""
    try:
        folder = check_folder(path)
    except OutputError as error:
        return Folder(path, problem=error.message)
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    return Folder(str(folder.absolute()), shutil.disk_usage(there).free)


def look_at_hub() -> Hub:
    """The cache of the hub; the hub itself is not asked."""
    try:
        from huggingface_hub import constants, get_token
    except Exception as error:
        return Hub(Folder("", problem=shortened(f"{type(error).__name__}: {error}", 300)))
    cache = Path(constants.HF_HUB_CACHE)
    wanted = {entry.name: entry.checkpoint for entry in catalogue() if entry.checkpoint != "bundled"}
    held = {name: cached(checkpoint) for name, checkpoint in wanted.items()}
    return Hub(
        look_at_folder(str(cache)),
        offline=constants.is_offline_mode(),
        token=get_token() is not None,
        complete=tuple(name for name, state in held.items() if state == "complete"),
        begun=tuple(name for name, state in held.items() if state == "begun"),
    )


def look_at_ffmpeg() -> Ffmpeg:
    """The program that writes videos, and whether it has the encoders."""
    try:
        import imageio_ffmpeg

        path = imageio_ffmpeg.get_ffmpeg_exe()
        version = imageio_ffmpeg.get_ffmpeg_version()
        listed = subprocess.run(
            [path, "-hide_banner", "-encoders"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            check=True,
        ).stdout
    except Exception as error:  # not there, not executable, for another machine
        return Ffmpeg(problem=shortened(f"{type(error).__name__}: {' '.join(str(error).split())}", 300))
    lacking = [name for name in _ENCODERS if not re.search(rf"^\s*V\S*\s+{name}\s", listed, re.MULTILINE)]
    return Ffmpeg(path, version, f"it lacks the encoder {' and '.join(lacking)}" if lacking else None)


def _driver() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", text)
    return found and found[1]


def _driver_cuda() -> str | None:
    """The newest CUDA that the driver runs."""
    version = ctypes.c_int()
    try:
        code = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if code else f"{version.value // 1000}.{version.value % 1000 // 10}"

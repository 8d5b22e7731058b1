"""Facts about a machine, as plain records that tests can construct."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Library:
    """A package that adaspa uses.

    Attributes:
        name: as pip calls it.
        version: None where it is not installed.
        needs: the versions that adaspa takes, where this is none of them.
    """

    name: str
    version: str | None
    needs: str | None = None


@dataclass(frozen=True)
class Extra:
    """An extra of adaspa: ``pip install 'adaspa[NAME]'``."""

    name: str
    libraries: tuple[Library, ...]


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees; memory in bytes."""

    name: str
    capability: str
    memory: int
    free: int


@dataclass(frozen=True)
class Kernels:
    """An attention backend on the device of a run.

    Attributes:
        backend: its name.
        runs: which kernels it runs, and how they did on a small problem; None where it cannot run.
        problem: why it cannot run, or what went wrong.
        unusable: whether the device is none of this backend's, so that nothing is to be mended.
    """

    backend: str
    runs: str | None = None
    problem: str | None = None
    unusable: bool = False


@dataclass(frozen=True)
class Probed:
    """What a process of its own found that imports the heavy libraries.

    Attributes:
        errors: why a library cannot be imported, by its name.
        cuda: that torch was built with; None is a build for CPUs.
        gpus: that torch sees.
        gpu_problem: why torch cannot use any.
        device: that a run would take; None where there is none of that name.
        device_problem: why.
        dtype: of weights and computation there.
        kernels: of each attention backend.
        fp8_problem: why linear layers cannot multiply in FP8 there.
        lacking: pipeline classes that this version of diffusers has not.
        died: how the process ended, if it did not come to its end.
    """

    errors: dict[str, str] = field(default_factory=dict)
    cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str | None = None
    device: str | None = None
    device_problem: str | None = None
    dtype: str | None = None
    kernels: tuple[Kernels, ...] = ()
    fp8_problem: str | None = None
    lacking: tuple[str, ...] = ()
    died: str | None = None


@dataclass(frozen=True)
class Folder:
    """A folder that files are written to; ``free`` in bytes."""

    path: str
    free: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Hub:
    """The cache of the hub on this disk.

    Attributes:
        cache: its folder.
        offline: whether HF_HUB_OFFLINE is set.
        token: whether there is one; never which.
        complete: models of ``adaspa models`` that are there.
        begun: those whose download has not come to its end.
    """

    cache: Folder
    offline: bool = False
    token: bool = False
    complete: tuple[str, ...] = ()
    begun: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ffmpeg:
    """What writes videos."""

    path: str | None = None
    version: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Model:
    """The requested model; bytes are estimates, those of memory by each ``--offload`` that goes with the requested
    dtype of linear layers; None where nothing tells."""

    name: str
    checkpoint: str
    gated: bool
    disk: int | None
    memory: Mapping[str, int | None]


@dataclass(frozen=True)
class Asked:
    """What the machine is to do; None where nothing was asked."""

    device: str | None = None
    attention_backend: str | None = None
    linear: str | None = None
    model: Model | None = None


@dataclass(frozen=True)
class Facts:
    """Everything that is known of a machine; memory in bytes.

    Attributes:
        python, system, cpu: names and versions.
        cores: that this process may use.
        memory, memory_free: of the machine.
        driver: version of NVIDIA's driver.
        driver_cuda: newest CUDA that it runs.
        driver_there: whether there is a driver of a GPU, of whatever kind.
        libraries: that adaspa needs.
        extras: that it has.
        out: folder of the videos.
    """

    python: str
    system: str
    cpu: str
    cores: int
    memory: int | None
    memory_free: int | None
    libraries: tuple[Library, ...]
    extras: tuple[Extra, ...]
    probed: Probed
    out: Folder
    hub: Hub
    ffmpeg: Ffmpeg
    driver: str | None = None
    driver_cuda: str | None = None
    driver_there: bool = False

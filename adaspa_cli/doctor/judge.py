"""From facts to findings: what works, what is worth knowing, what is wrong and how to fix it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from adaspa_cli.doctor.facts import Asked, Extra, Facts, Folder, Kernels, Library, Model

Status = Literal["ok", "note", "problem"]
_LITTLE = 2_000_000_000  # bytes of a disk
_FIRST = ("torch", "triton", "diffusers", "transformers")  # that have a line of their own
_PAGE = "https://pytorch.org/get-started/locally"


@dataclass(frozen=True)
class Finding:
    """A line of the result.

    Attributes:
        topic: the group of lines that it belongs to.
        mend: what to do about it; None where there is nothing to do.
    """

    topic: str
    status: Status
    name: str
    text: str
    mend: str | None = None


def judge(facts: Facts, asked: Asked) -> list[Finding]:
    """All findings, in the order in which they are shown."""
    return [
        *_machine(facts, asked),
        *_libraries(facts),
        *_attention(facts, asked),
        *_files(facts),
        *_models(facts, asked),
        *_extras(facts),
    ]


# --- the machine
def _machine(facts: Facts, asked: Asked) -> Iterator[Finding]:
    topic = "machine"
    yield Finding(topic, "ok", "python", f"{facts.python} on {facts.system}")
    memory = "" if facts.memory is None else f", {size(facts.memory)} of memory"
    free = "" if facts.memory_free is None else f", {size(facts.memory_free)} free"
    yield Finding(
        topic, "ok", "cpu", f"{facts.cpu}, {facts.cores} {'core' if facts.cores == 1 else 'cores'}{memory}{free}"
    )
    if facts.driver or facts.driver_cuda:
        cuda = f", for CUDA up to {facts.driver_cuda}" if facts.driver_cuda else ""
        yield Finding(topic, "ok", "driver", f"NVIDIA {facts.driver or 'of unknown version'}{cuda}")
    for number, gpu in enumerate(facts.probed.gpus):
        text = f"{gpu.name}, compute capability {gpu.capability}, {size(gpu.memory)} of memory, {size(gpu.free)} free"
        yield Finding(topic, "ok", f"gpu {number}", text)
    if not facts.probed.gpus and "torch" not in facts.probed.errors:
        yield _no_gpu(facts)
    if facts.probed.device_problem is not None:
        status: Status = "problem" if asked.device else "note"
        yield Finding(topic, status, "device", facts.probed.device_problem, "adaspa doctor --device auto")


def _no_gpu(facts: Facts) -> Finding:
    if not facts.driver_there:
        return Finding("machine", "note", "gpu", "none: no NVIDIA driver is installed; runs use the CPU")
    if facts.probed.cuda is None:
        why = "there is a GPU driver, but this torch is a build without CUDA"
        return Finding("machine", "problem", "gpu", why, f"install torch for CUDA: {_PAGE}")
    why = facts.probed.gpu_problem or "there is a GPU driver, but torch sees no GPU"
    mend = f"a newer driver, or a torch for CUDA {facts.driver_cuda or 'of this driver'}: {_PAGE}"
    return Finding("machine", "problem", "gpu", why, f"look at nvidia-smi and CUDA_VISIBLE_DEVICES; {mend}")


# --- libraries
def _libraries(facts: Facts) -> Iterator[Finding]:
    errors, others = dict(facts.probed.errors), []
    for library in facts.libraries:
        found = _library(library, errors.pop(library.name, None), facts.probed.cuda)
        if found.status == "ok" and library.name not in _FIRST:
            others.append(f"{library.name} {library.version}")
        else:
            yield found
    if others:
        yield Finding("libraries", "ok", "others", ", ".join(others))
    for name, error in errors.items():
        yield Finding("libraries", "problem", name, f"cannot be imported: {error}", _reinstall(name))
    if facts.probed.lacking:
        names = ", ".join(facts.probed.lacking)
        yield Finding("libraries", "note", "pipelines", f"diffusers lacks {names}", "pip install --upgrade diffusers")
    if facts.probed.died is not None:
        yield Finding(
            "libraries",
            "problem",
            "crash",
            f"the process that checked the libraries failed: {facts.probed.died}",
            "reinstall the library that is named, or torch: pip install --force-reinstall torch",
        )


def _library(library: Library, error: str | None, cuda: str | None) -> Finding:
    name = library.name
    if library.version is None:
        return Finding("libraries", "problem", name, "is not installed", f"pip install {name}")
    if error is not None:
        text = f"{library.version} cannot be imported: {error}"
        return Finding("libraries", "problem", name, text, _reinstall(name))
    if library.needs is not None:
        text = f"{library.version}, and adaspa needs {library.needs}"
        return Finding("libraries", "problem", name, text, f"pip install '{name}{library.needs}'")
    build = f", for {'CPUs' if cuda is None else f'CUDA {cuda}'}" if name == "torch" else ""
    return Finding("libraries", "ok", name, f"{library.version}{build}")


def _reinstall(name: str) -> str:
    if name == "torchvision":
        return "pip install --upgrade torch torchvision, so that they match, or pip uninstall torchvision"
    return f"pip install --force-reinstall {name}"


# --- attention
def _attention(facts: Facts, asked: Asked) -> Iterator[Finding]:
    probed = facts.probed
    if probed.device is None:
        return
    yield Finding("attention", "ok", "device", f"{probed.device}, weights in {probed.dtype}")
    for kernels in probed.kernels:
        yield _kernels(kernels, asked.attention_backend == kernels.backend)
    if probed.fp8_problem is None:
        yield Finding("attention", "ok", "fp8", "linear layers can multiply in FP8: --linear fp8")
    elif asked.linear == "fp8":
        yield Finding("attention", "problem", "fp8", probed.fp8_problem, "use --linear model")
    else:
        yield Finding("attention", "note", "fp8", f"not here: {probed.fp8_problem}")


def _kernels(kernels: Kernels, asked: bool) -> Finding:
    if kernels.problem is None:
        return Finding("attention", "ok", kernels.backend, str(kernels.runs))
    if kernels.unusable and not asked:
        return Finding("attention", "note", kernels.backend, f"not here: {kernels.problem}")
    mend = "use --attention-backend auto" if kernels.unusable else _mend_kernels(kernels)
    return Finding("attention", "problem", kernels.backend, kernels.problem, mend)


def _mend_kernels(kernels: Kernels) -> str:
    if kernels.backend == "triton":
        return "install a C compiler (apt install gcc), empty ~/.triton/cache, and take triton of torch's release"
    return "pip install --force-reinstall torch"


# --- files
def _files(facts: Facts) -> Iterator[Finding]:
    yield _folder("videos", facts.out, "choose another folder with --out")
    ffmpeg = facts.ffmpeg
    if ffmpeg.problem is not None:
        where = f"{ffmpeg.path}: " if ffmpeg.path else ""
        mend = "pip install --force-reinstall imageio-ffmpeg, and unset IMAGEIO_FFMPEG_EXE"
        yield Finding("files", "problem", "ffmpeg", f"{where}{ffmpeg.problem}", mend)
    else:
        yield Finding("files", "ok", "ffmpeg", f"{ffmpeg.version} at {ffmpeg.path}")


def _folder(name: str, folder: Folder, mend: str) -> Finding:
    if folder.problem is not None:
        return Finding("files", "problem", name, folder.problem, mend)
    if folder.free is not None and folder.free < _LITTLE:
        return Finding("files", "note", name, f"{folder.path}: only {size(folder.free)} free", mend)
    return Finding("files", "ok", name, f"{folder.path}: {size(folder.free or 0)} free")


# --- models
def _models(facts: Facts, asked: Asked) -> Iterator[Finding]:
    hub, topic = facts.hub, "models"
    yield Finding(topic, "ok", "tiny", "comes with adaspa")
    found = _folder("cache", hub.cache, "set HF_HOME to a writable folder with enough space")
    yield Finding(topic, found.status, found.name, found.text, found.mend)
    yield Finding(topic, "ok", "cached", ", ".join(hub.complete) or "none of the models that adaspa models lists")
    if hub.begun:
        names = ", ".join(hub.begun)
        yield Finding(topic, "note", "partial", names, "a run, or hf download, continues the download")
    token = "set" if hub.token else "not set; only gated models need one: hf auth login"
    yield Finding(topic, "ok", "token", token)
    if hub.offline:
        yield Finding(topic, "note", "offline", "HF_HUB_OFFLINE is set: nothing is downloaded")
    if asked.model is not None:
        yield from _model(facts, asked.model)


def _model(facts: Facts, model: Model) -> Iterator[Finding]:
    """Whether a model is available, and fits."""
    topic, hub = "models", facts.hub
    if model.checkpoint != "bundled" and model.name not in hub.complete:
        if hub.offline:
            yield Finding(topic, "problem", model.name, "is not in the cache, but HF_HUB_OFFLINE is set", "unset it")
        elif model.gated and not hub.token:
            text = f"is gated, and there is no token: {model.checkpoint}"
            yield Finding(topic, "problem", model.name, text, "accept its licence on its page, then hf auth login")
        elif model.disk is not None and hub.cache.free is not None and model.disk > hub.cache.free:
            text = f"takes about {size(model.disk)}, and the cache has {size(hub.cache.free)} free"
            yield Finding(topic, "problem", model.name, text, "set HF_HOME to a folder on a larger disk")
        else:
            about = "" if model.disk is None else f", about {size(model.disk)}"
            yield Finding(topic, "note", model.name, f"is downloaded by its first run{about}")
    yield from _fit(facts, model)


def _fit(facts: Facts, model: Model) -> Iterator[Finding]:
    gpus, name = facts.probed.gpus, model.name
    if facts.probed.device == "cpu":
        if model.checkpoint != "bundled":
            yield Finding(
                "models", "problem", name, "is meant for a GPU, but the run would use the CPU", "use --model tiny here"
            )
        return
    number = int((facts.probed.device or "").partition(":")[2] or 0)  # "cuda" is the first GPU
    whole = model.memory["none"]
    if whole is None or number >= len(gpus):
        return
    free = gpus[number].free
    need = f"about {size(whole)} of GPU memory at its own size, and {size(free)} are free"
    fitting = next((offload for offload, held in model.memory.items() if held is not None and held <= free), None)
    if fitting == "none":
        yield Finding("models", "ok", name, f"takes {need}")
    elif fitting is not None:
        yield Finding("models", "note", name, f"takes {need}", f"--offload {fitting}")
    else:
        fewer = "--offload group with a smaller video, or --weights-dtype: docs/low-memory.md"
        mend = fewer if "group" in model.memory else f"without --linear, {fewer}"
        yield Finding("models", "problem", name, f"takes {need}", mend)


# --- extras
def _extras(facts: Facts) -> Iterator[Finding]:
    for extra in facts.extras:
        yield _extra(extra)


def _extra(extra: Extra) -> Finding:
    wrong = [one for one in extra.libraries if one.version is None or one.needs is not None]
    shown = ", ".join(f"{one.name} {one.version or 'missing'}" for one in extra.libraries)
    if not wrong:
        return Finding("extras", "ok", extra.name, shown)
    text = "not installed" if all(one.version is None for one in extra.libraries) else shown
    return Finding("extras", "note", extra.name, text, f"pip install 'adaspa[{extra.name}]'")


def size(count: int) -> str:
    """Bytes for people, in powers of ten."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"

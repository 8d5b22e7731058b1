"""From a model's settings to a pipeline that is ready to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adaspa_cli.config.architecture import BUNDLED, architecture_of, check_complete, check_preset, facts_of_index
from adaspa_cli.config.devices import check_offload, machine_memory, no_device
from adaspa_cli.config.hub import hub_answers, hub_error
from adaspa_cli.config.model_files import check_files, check_transformer_file
from adaspa_cli.config.model_source import fetch_model_index, read_model_index
from adaspa_cli.config.packages import check_packages
from adaspa_cli.config.schema import ModelConfig
from adaspa_cli.config.weights import check_weights_fit, part_bytes
from adaspa_cli.errors import ConfigError, ModelError
from adaspa_cli.hooks.override import Override
from adaspa_cli.models.compiled import check_compiler, compile_blocks
from adaspa_cli.models.family import Family
from adaspa_cli.models.fp8 import left_behind, room
from adaspa_cli.models.lora import load_loras
from adaspa_cli.models.quantised import quantise_weights
from adaspa_cli.models.registry import family_of, heavy
from adaspa_cli.models.weight_files import variant_of


def choose_device(name: str) -> torch.device:
    """``auto`` is the first GPU, or the CPU where there is none.

    Raises:
        BackendError: the requested GPU does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise no_device(name, torch.cuda.device_count())
    return device


def device_name(device: str) -> str:
    """The name by which a device is compared: what ``auto`` chooses here, and the first GPU without its number."""
    if device == "auto":
        return choose_device(device).type
    return "cuda" if device == "cuda:0" else device


def other_names(device: str) -> tuple[str, ...]:
    """By which other settings this machine runs on the same device."""
    chosen = choose_device("auto").type
    names = ("auto", "cpu") if chosen == "cpu" else ("auto", "cuda", "cuda:0")
    return tuple(name for name in names if name != device) if device in names else ()


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where its products are native: GPUs, and CPUs with AVX512-BF16 or AMX; else float32."""
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type == "cuda":
        return torch.bfloat16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def load_pipeline(config: ModelConfig, *, decode: bool = True, linear: str = "model") -> Any:
    """Load a pipeline of diffusers, or build one with random weights.

    Args:
        config: names the bundled model, a local folder or a hub id.
        decode: whether videos will be decoded; with random weights there is no VAE otherwise.
        linear: precision of the linear layers in all runs. For ``fp8`` their weights are left in main memory, where
            :class:`~adaspa_cli.models.fp8.Fp8Linears` quantises them from: the device never holds the whole model.

    Returns:
        The pipeline on its device but for those weights (or with offloading on), progress bars off.

    Raises:
        ModelError: missing, gated, incomplete or of an unknown family, or a LoRA of no use to it.
        BackendError: the device or a package is not there, offloading was requested without a GPU, or blocks cannot be
            compiled.
        OutOfMemoryError: the weights need more memory than the device has.
    """
    check_packages(config)
    check_files(config)
    device = choose_device(config.device)
    check_offload(config.offload, device.type)
    check_weights_fit(config, device.type, _memory_of(device), machine_memory()[1], linear)
    if config.compile:
        check_compiler(device)
    dtype = choose_dtype(config.dtype, device)
    pipe = _random(config, dtype, device, decode, linear) if config.random_weights else _load(config, dtype)
    load_loras(family_of(pipe), pipe, config, fuse=not config.is_gguf)
    if config.weights_dtype != "model":
        quantise_weights(family_of(pipe), pipe, config.weights_dtype, device)
    _configure(pipe, config)
    _place(pipe, config.offload, device, linear)
    if config.compile:
        family = family_of(pipe)
        for transformer in family.transformers(pipe):
            compile_blocks(family.blocks(transformer), device)
    return pipe


def _memory_of(device: torch.device) -> int | None:
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else machine_memory()[1]


def _random(config: ModelConfig, dtype: torch.dtype, device: torch.device, decode: bool, linear: str) -> Any:
    from adaspa_cli.models.random_weights import random_pipeline

    quiet_libraries()
    architecture = architecture_of(config)
    parts = part_bytes(config, architecture, dtype.itemsize, decodes=decode) or {}
    apart = linear == "fp8" and sum(parts.values()) < room()
    held = torch.device("cpu") if apart or config.offload != "none" else device
    pipe = random_pipeline(architecture, dtype, device, decode=decode, held=held)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _load(config: ModelConfig, dtype: torch.dtype) -> Any:
    """Load what ``config.weights`` names."""
    location = str(BUNDLED) if config.is_bundled else config.weights
    local = Path(location).expanduser()
    if local.is_dir():
        location = str(local)
        check_complete(local)
    elif location.startswith((".", "/", "~")):
        raise ModelError(f"model {location} does not exist")
    return _from_pretrained(location, dtype, config)


def _from_pretrained(location: str, dtype: torch.dtype, config: ModelConfig) -> Any:
    from huggingface_hub.errors import HfHubHTTPError
    from safetensors import SafetensorError

    quiet_libraries()
    local = Path(location).is_dir()
    try:
        index = read_model_index(Path(location)) if local else fetch_model_index(location)
        family = heavy(facts_of_index(config, index))
        if not local:  # folders were checked before anything was loaded
            check_preset(config, family.facts.pipeline)
        cached = local or not hub_answers()
        variant = variant_of(_files(location, cached=cached), dtype, location)
        parts = family.parts(location, local_files_only=cached)
        if config.transformer is not None:
            present = [name for name in family.facts.transformers if (index.get(name) or [None])[0] is not None]
            family.facts.check_single_file(len(present))
            parts["transformer"] = _single_file(family, location, dtype, config, cached=cached)
        pipe = family.classes().pipeline.from_pretrained(
            location,
            dtype=dtype,
            variant=variant,
            local_files_only=cached,
            **parts,
        )
    except HfHubHTTPError as error:
        raise hub_error(location, error) from error
    except SafetensorError as error:
        raise ModelError(f"{location} holds a corrupt weight file: {error}", hint="download it again") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"cannot load {location}: {reason}", hint="download it again" if local else None) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _single_file(family: Family, location: str, dtype: torch.dtype, config: ModelConfig, *, cached: bool) -> Any:
    """The transformer of a file of its own, by the configuration of the checkpoint.

    Raises:
        ModelError: it is no file, lacks weights, or has those of another model.
    """
    from diffusers import GGUFQuantizationConfig

    path, kind = check_transformer_file(config), family.classes().transformer
    load = partial(kind.from_single_file, str(path), config=location, subfolder="transformer", local_files_only=cached)
    try:
        if config.is_gguf:
            return load(torch_dtype=dtype, quantization_config=GGUFQuantizationConfig(compute_dtype=dtype))
        if not kind._keep_in_fp32_modules:
            return load(torch_dtype=dtype)
        with _keeping_in_float32(kind._keep_in_fp32_modules, dtype):
            return load()
    except NotImplementedError as error:  # what has no weights cannot be moved
        raise ModelError(
            f"transformer {config.transformer} does not hold all weights of a {kind.__name__}",
            hint="is it of another model, or a LoRA?",
        ) from error
    except (OSError, ValueError) as error:
        if "Unable to load weights" in str(error):  # what diffusers says of each file that it can't read
            raise ModelError(
                f"transformer {config.transformer} can't be read: it is cut short, corrupt or of another format",
                hint="download it again; a .safetensors or .gguf file is needed",
            ) from error
        reason = " ".join(str(error).split()).removeprefix("Cannot load because ").partition(". If you")[0][:200]
        raise ModelError(
            f"transformer {config.transformer} does not fit this model: {reason}", hint="is it of another model?"
        ) from error


@contextmanager
def _keeping_in_float32(modules: Sequence[str], dtype: torch.dtype) -> Iterator[None]:
    """Within it single files are loaded in ``dtype`` but for some modules, as diffusers does with folders alone."""
    from diffusers.loaders import single_file_model

    def keeping(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **own: original(*args, **own | {"dtype": dtype, "keep_in_fp32_modules": modules})

    override = Override(single_file_model, "load_model_dict_into_meta", keeping)
    try:
        yield
    finally:
        override.restore()


def _files(location: str, *, cached: bool) -> list[str]:
    """Paths of a checkpoint's files: those in a folder or in the hub's cache, or those that the hub has."""
    from huggingface_hub import list_repo_files, snapshot_download

    folder = Path(location)
    if not folder.is_dir():
        if not cached:
            return list(list_repo_files(location))
        folder = Path(snapshot_download(location, local_files_only=True))
    return [path.relative_to(folder).as_posix() for path in folder.glob("*/*")]


def _configure(pipe: Any, config: ModelConfig) -> None:
    if config.flow_shift is not None:
        key = next((key for key in ("shift", "flow_shift") if key in pipe.scheduler.config), None)
        if key is None:
            raise ConfigError(f"--flow-shift: the scheduler of this model, {type(pipe.scheduler).__name__}, has none")
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **{key: config.flow_shift})
    if pipe.vae is None:
        return
    if config.vae_framewise is not None and not hasattr(pipe.vae, "use_framewise_decoding"):
        raise ConfigError(f"--vae-framewise: the VAE of this model, {type(pipe.vae).__name__}, has no such option")
    if config.vae_framewise is not None:
        pipe.vae.use_framewise_decoding = config.vae_framewise
    if config.vae_tiling:
        pipe.vae.enable_tiling()


def _place(pipe: Any, offload: str, device: torch.device, linear: str) -> None:
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "group":
        pipe.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=True)
    else:
        with left_behind(family_of(pipe), pipe) if linear == "fp8" else nullcontext():
            pipe.to(device)


def quiet_libraries() -> None:
    """Silence the loading bars and warnings that diffusers and transformers print to the terminal."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()

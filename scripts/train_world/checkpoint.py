"""Checkpoints: tensors in safetensors, everything else in JSON, nothing pickled.

Every random number of a training run is a function of (seed, step), see ``generator_at``. So the step *is* the state
of all generators, and a run that is stopped and resumed draws what it would have drawn.
"""

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Tensors = dict[str, Tensor]

_STATE = "state.json"


def generator_at(seed: int, step: int, stream: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on these arguments alone; ``stream`` keeps different uses apart."""
    return torch.Generator(device).manual_seed(seed_at(seed, step, stream))


def random_at(seed: int, step: int, stream: str) -> random.Random:
    """The same for what isn't drawn by torch."""
    return random.Random(seed_at(seed, step, stream))


def seed_at(seed: int, step: int, stream: str) -> int:
    """A 62-bit seed that depends on these arguments alone."""
    digest = hashlib.sha256(f"{seed}/{step}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 2


def save_checkpoint(folder: Path, groups: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
    """Write each group to ``<group>.safetensors`` and the state to ``state.json``.

    The names hold the step, and ``state.json`` is replaced last: an interrupted save leaves the previous one whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {group: f"{group}-{state['step']:07d}.safetensors" for group in groups}
    for group, tensors in groups.items():
        _write_tensors(folder / files[group], tensors)
    temporary = folder / f"{_STATE}.part"
    temporary.write_text(json.dumps({**state, "files": files}, indent=1) + "\n")
    temporary.replace(folder / _STATE)
    for stale in set(folder.glob("*-???????.safetensors")) - {folder / name for name in files.values()}:
        stale.unlink()


def load_state(folder: Path) -> dict[str, Any] | None:
    """The state of the checkpoint in ``folder``, or None if there is none."""
    path = folder / _STATE
    return json.loads(path.read_text()) if path.is_file() else None


def read_json(path: Path) -> Any:
    """Content of a JSON file, or None if there is none."""
    return json.loads(path.read_text()) if path.is_file() else None


def load_group(folder: Path, group: str) -> Tensors | None:
    """One group of tensors on the CPU, or None if the checkpoint has no such group."""
    state = load_state(folder)
    if state is None or group not in state["files"]:
        return None
    return read_tensors(folder / state["files"][group])


def read_tensors(path: Path) -> Tensors:
    """All tensors of one safetensors file, on the CPU."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> Tensors:
    """State of an optimiser over the parameters ``names`` (in its own order), as flat names."""
    state = optimizer.state_dict()["state"]
    return {
        f"{names[index]}|{key}": torch.as_tensor(value).detach().cpu()
        for index, entry in state.items()
        for key, value in entry.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: Tensors) -> None:
    """Inverse of ``optimizer_tensors``; entries of other parameters than ``names`` are left to their own optimiser."""
    position = {name: index for index, name in enumerate(names)}
    state: dict[int, Tensors] = {}
    for flat, value in tensors.items():
        name, key = flat.rsplit("|", 1)
        if name in position:
            state.setdefault(position[name], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def module_tensors(modules: Mapping[str, nn.Module]) -> Tensors:
    """Parameters of several modules under ``<module>.<parameter>``. None of them has persistent buffers."""
    return {
        f"{prefix}.{name}": parameter.detach()
        for prefix, module in modules.items()
        for name, parameter in module.named_parameters()
    }


@torch.no_grad()
def load_modules(modules: Mapping[str, nn.Module], tensors: Tensors) -> None:
    """Copy tensors into the modules' parameters.

    Raises:
        ValueError: if names or shapes are not exactly those of the modules.
    """
    targets = module_tensors(modules)
    if set(targets) != set(tensors):
        strange = sorted(set(targets) ^ set(tensors))[:3]
        raise ValueError(f"the checkpoint is of another geometry: {', '.join(strange)} ...")
    for name, target in targets.items():
        if target.shape != tensors[name].shape:
            raise ValueError(f"{name} is {tuple(tensors[name].shape)} in the checkpoint, not {tuple(target.shape)}")
        target.copy_(tensors[name])


def _write_tensors(path: Path, tensors: Tensors) -> None:
    temporary = path.with_name(path.name + ".part")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
    temporary.replace(path)

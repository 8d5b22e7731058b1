"""How to get the dense run that a page has nothing to compare without: the commands, as a shell takes them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Iterator
from typing import Any

from adaspa_cli.config.flat import keys_of
from adaspa_cli.config.methods import DENSE
from adaspa_cli.config.parallel import ParallelConfig
from adaspa_cli.config.schema import MethodConfig, ModelConfig, SamplingConfig
from adaspa_cli.report.schema import Report

# Settings with a flag of one value; what else was given is written as --set KEY=VALUE.
FLAGS = (
    *("model", "weights", "dtype", "device", "layers", "offload", "gpus", "linear"),
    *("steps", "height", "width", "frames", "fps", "guidance_scale", "negative_prompt", "image", "last_image"),
    *("sparsity", "search_steps", "block_size", "cache", "masks"),
)
SWITCHES = ("random_weights",)
_DENSE_FOLDER = "videos/dense"
_OWN = {"method", "algorithm", "sparsity_ramp", "search_steps_for", "seed"}  # written in another way


def dense_commands(report: Report) -> tuple[str, str] | None:
    """Two commands: the dense run of the same video, and this run with that one beside it.

    None for a run that has one beside it, is dense itself, or made no video.
    """
    if report.compared is not None or report.setting("algorithm") in DENSE or report.video.file is None:
        return None
    sections = (ModelConfig, SamplingConfig, ParallelConfig)
    shared = [*_flags(report, set().union(*map(keys_of, sections)))]
    begin = ["adaspa", "generate", *_spelled("prompt", report.prompt), "--seed", str(report.seed), *shared]
    name = re.sub(r"(-seed-?\d+)-\d+$", r"\1", report.video.file.rpartition(".")[0])  # the first one of its folder
    own = [*_flags(report, keys_of(MethodConfig))]
    dense = [*begin, "--method", "full", "--out", _DENSE_FOLDER]
    this = [*begin, "--method", str(report.setting("method")), *own]
    this += ["--compare-with", f"{_DENSE_FOLDER}/{name}.report.json"]
    return shlex.join(dense), shlex.join(this)


def command_parts(command: str) -> list[str]:
    """A command split before each of its options, so that a line may break there and nowhere else."""
    parts: list[list[str]] = [[]]
    for word in shlex.split(command):
        if word.startswith("--") and parts[-1]:
            parts.append([])
        parts[-1].append(word)
    return [shlex.join(part) for part in parts]


def _flags(report: Report, keys: Collection[str]) -> Iterator[str]:
    """What was given of these settings, and not by a preset or a default."""
    for key, setting in report.settings.items():
        preset = setting.origin.startswith(("default", "method preset ", "model "))
        if key not in keys or key in _OWN or preset or setting.value is None:
            continue
        value = report.setting("sparsity_ramp") or setting.value if key == "sparsity" else setting.value
        yield from as_typed(key, value)


def as_typed(key: str, value: Any) -> list[str]:
    """A setting as the words of a command."""
    if key in SWITCHES:
        return [f"--{key.replace('_', '-')}"] if value else []
    if key in FLAGS:
        return _spelled(key, ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]


def _spelled(key: str, value: str) -> list[str]:
    """A flag with its value; one that begins with a dash is joined to it, lest it be taken for a flag itself."""
    flag = f"--{key.replace('_', '-')}"
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]

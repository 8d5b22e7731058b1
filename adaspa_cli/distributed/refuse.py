"""What can't be combined with several processes for one video, refused by name before anything slow begins.

Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping

from adaspa_cli.config.architecture import known_architecture
from adaspa_cli.config.families import FamilyFacts
from adaspa_cli.config.schema import GenerateConfig, MethodConfig, SamplingConfig
from adaspa_cli.errors import ConfigError

UNSHARED: Mapping[str, Mapping[str, str]] = {
    "method": {"diffusers": "use --method full, which makes the same video"},
    "merge": {"tomesd": "it matches tokens by all heads at once: use one process"},
}
"""What needs all tokens and all heads in one place, and what to do about it."""


def check_together(config: GenerateConfig, size: int) -> None:
    """Refuse a run that ``size`` processes cannot make together.

    Raises:
        ConfigError: names what can't be combined with it.
    """
    parallel, model = config.parallel, config.model
    if parallel.gpus not in (1, size):
        raise ConfigError(
            f"gpus is {parallel.gpus}, and {size} processes were started for one video", hint="drop --gpus, or torchrun"
        )
    if size == 1:
        if parallel.cfg_parallel:
            raise ConfigError("cfg_parallel needs several GPUs", hint="add --gpus 2, or drop --cfg-parallel")
        return
    if model.offload != "none":
        raise ConfigError(
            f"offload '{model.offload}' can't be combined with several GPUs for one video", hint="drop --offload"
        )
    if model.device.startswith("cuda:"):
        raise ConfigError(
            f"device '{model.device}' is one GPU, and the video is to be made by {size}", hint="use --device cuda"
        )
    if config.prompts.prompts == "-":
        raise ConfigError("prompts from stdin cannot be read by several processes", hint="write them to a file")
    check_method(config.method)
    model_known = known_architecture(model)
    if parallel.cfg_parallel:
        _check_branches(config, size)
        if model_known is not None:
            check_guided(model_known.facts, config.sampling)
    if model_known is not None and model_known.heads is not None:
        check_heads(model_known.heads, size // 2 if parallel.cfg_parallel else size)


def check_guided(facts: FamilyFacts, sampling: SamplingConfig) -> None:
    """Refuse to give each guidance branch processes of its own where a run has one; raises ConfigError."""
    if not facts.guided(sampling):
        raise ConfigError("cfg_parallel needs two guidance branches, and this run has one", hint="drop --cfg-parallel")


def check_heads(heads: int, size: int) -> None:
    """Refuse more processes for the tokens of a video than a layer has heads.

    Raises:
        ConfigError: there are more.
    """
    if heads < size:
        raise ConfigError(
            f"{size} processes cannot share {heads} heads", hint=f"use at most {heads} processes, or --cfg-parallel"
        )


def check_search(config: GenerateConfig, size: int, *, shared: bool) -> None:
    """Refuse a search of masks that ``size`` processes cannot make together; ``shared`` has each make videos alone.

    Raises:
        ConfigError: names what can't be combined with it.
    """
    if shared:
        check_alone(config, "a process with --shard")
    if config.parallel.cfg_parallel:
        raise ConfigError(
            "cfg_parallel can't be combined with search-masks: one process writes the masks of both branches",
            hint="drop cfg_parallel; --gpus alone shares the tokens",
        )
    check_together(config, 1 if shared else size)


def check_alone(config: GenerateConfig, what: str) -> None:
    """Refuse several GPUs for one video where a process makes it alone; ``what`` does.

    Raises:
        ConfigError: they were requested.
    """
    if config.parallel.gpus > 1 or config.parallel.cfg_parallel:
        raise ConfigError(
            f"{what} makes each video in one process, and gpus is {config.parallel.gpus}",
            hint="drop gpus and cfg_parallel",
        )


def _check_branches(config: GenerateConfig, size: int) -> None:
    if size % 2:
        raise ConfigError(f"cfg_parallel gives each guidance branch half of the processes, and there are {size}")
    if config.method.share_cfg_masks:
        raise ConfigError(
            "cfg_parallel can't be combined with share_cfg_masks: the branches run at the same time",
            hint="drop one of them",
        )
    if config.method.mask_file.masks_min_recall is not None:
        raise ConfigError(
            "cfg_parallel can't be combined with masks_min_recall, which measures both branches",
            hint="drop one of them",
        )
    if config.method.cache.name != "none":
        raise ConfigError(
            f"cfg_parallel can't be combined with cache '{config.method.cache.name}', which sees only one branch",
            hint="drop --cfg-parallel, or the cache",
        )


def check_method(config: MethodConfig) -> None:
    """Refuse a method or merging that needs all tokens and all heads in one process.

    Raises:
        ConfigError: names what it is.
    """
    chosen = {"method": config.algorithm.name, "merge": config.merge.name}
    for key, name in chosen.items():
        if name in UNSHARED[key]:
            raise ConfigError(
                f"{key} '{name}' can't be combined with several GPUs for one video", hint=UNSHARED[key][name]
            )

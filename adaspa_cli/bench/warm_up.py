"""Untimed warm-up steps before the first run of a row, which compile and tune the kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from adaspa_cli.config import GenerateConfig, Resolved
from adaspa_cli.config.methods import SparseConfig
from adaspa_cli.maskfiles.stored import run_policy
from adaspa_cli.masks import CallPlan
from adaspa_cli.models.registry import check_sampling, family_of
from adaspa_cli.sampling.handle import Handle
from adaspa_cli.sampling.run import sample


def warm_up(pipe: Any, resolved: Resolved, steps: int, prompt: str, seed: int) -> None:
    """Run at least ``steps`` denoising steps of a row, and as many as it takes to meet every phase that it has.

    With random weights the transformer has only the first blocks of each kind meanwhile: kernels have met their
    shapes after one layer, and compiled blocks both memory layouts in which tokens come after two. A cache of
    diffusers ties first and last blocks together, and group offloading learns in its first pass in which order to
    fetch them: there the whole stack runs.

    Raises:
        AdaspaError: the settings do not fit the pipeline.
    """
    few = few_steps(resolved, steps)
    config = few.config
    check_sampling(pipe, config.sampling)
    short = config.model.random_weights and config.model.offload != "group" and config.method.cache.name == "none"
    whole = family_of(pipe).transformers(pipe)
    with first_blocks(whole if short else ()), Handle(pipe, config.method):
        sample(pipe, few, prompt, seed)


@contextmanager
def first_blocks(transformers: Sequence[nn.Module]) -> Iterator[None]:
    """Cut every list of blocks of transformers to its first two; afterwards, or after an error, they are as before."""
    lists = [
        (transformer, name, child)
        for transformer in transformers
        for name, child in transformer.named_children()
        if isinstance(child, nn.ModuleList)
    ]
    try:
        for transformer, name, blocks in lists:
            setattr(transformer, name, blocks[:2])
        yield
    finally:
        for transformer, name, blocks in lists:
            setattr(transformer, name, blocks)


def few_steps(resolved: Resolved, least: int) -> Resolved:
    """The same run with few steps, the schedule scaled to them, and no decoding.

    Args:
        least: number of steps, if so many meet every phase of the whole run; otherwise there are more.
    """
    phases = _phases(resolved.config)
    few = _with_steps(resolved, least)
    for steps in range(least + 1, resolved.config.sampling.steps + 1):
        if _phases(few.config) >= phases:
            break
        few = _with_steps(resolved, steps)
    return few


def _phases(config: GenerateConfig) -> set[CallPlan]:
    """What the attention calls of a run do."""
    steps = config.sampling.steps
    return set(run_policy(config.method, steps).plan(range(steps)))


def _with_steps(resolved: Resolved, steps: int) -> Resolved:
    config = resolved.config
    algorithm = config.method.algorithm
    if isinstance(algorithm, SparseConfig):
        algorithm = dataclasses.replace(algorithm, search_steps_for=algorithm.search_steps_for or config.sampling.steps)
    changed = dataclasses.replace(
        config,
        sampling=dataclasses.replace(config.sampling, steps=steps),
        method=dataclasses.replace(config.method, algorithm=algorithm),
        output=dataclasses.replace(config.output, decode=False, lossless=False),
    )
    return dataclasses.replace(resolved, config=changed)

"""``search-masks``: run as far as the last search step, and keep the masks of all layers in one file.

With several prompts and seeds they are chosen from the average; :mod:`adaspa_cli.maskfiles.search` has the memory that
this takes.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from adaspa_cli.attention import TokenLayout
from adaspa_cli.config import Resolved
from adaspa_cli.config.families import count_layers
from adaspa_cli.config.kept_blocks import most_needed
from adaspa_cli.config.search_masks import SearchOptions
from adaspa_cli.errors import ConfigError, OutputError
from adaspa_cli.files.claims import Claim, take
from adaspa_cli.files.folders import check_folder, prepare_folder
from adaspa_cli.files.whole import clear_partial
from adaspa_cli.hooks.clock import Listener, Order
from adaspa_cli.jobs.fingerprint import digest, settings_that_count
from adaspa_cli.jobs.generate import JobObserver
from adaspa_cli.maskfiles import Description, MaskFile, MethodFacts
from adaspa_cli.maskfiles.check import model_facts
from adaspa_cli.maskfiles.parts import MaskParts
from adaspa_cli.maskfiles.search import MaskSearch
from adaspa_cli.masks.methods.registry import make_policy
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.models.registry import check_sampling, family_of
from adaspa_cli.report.machine import versions
from adaspa_cli.sampling.handle import Handle
from adaspa_cli.sampling.memory import memory_errors
from adaspa_cli.sampling.run import sample

_NO_MATTER = ("fps", "decode", "lossless", "vae_tiling", "vae_framewise")


class SearchObserver(JobObserver, Protocol):
    """Is told how a search goes on."""

    def estimated(self, file_bytes: int, sums_bytes: int) -> None: ...


@dataclass(frozen=True)
class _Job:
    """What is searched.

    Attributes:
        resolved: the settings, of a run that ends in latents.
        options: what to keep, and where.
        prompts: each is searched with each seed.
        stages: first step of each transformer after the first; not known before the model is loaded.
    """

    resolved: Resolved
    options: SearchOptions
    prompts: list[str]
    stages: tuple[int, ...] = ()

    @property
    def steps(self) -> tuple[int, ...]:
        """Those that are searched: all search steps of the run, or the first of each stage."""
        config = self.resolved.config
        every = config.method.searching.schedule(config.sampling.steps, self.stages)
        if not self.options.first_step_only:
            return every
        return tuple(sorted({sum(first <= step for first in self.stages): step for step in reversed(every)}.values()))

    @property
    def videos(self) -> list[tuple[str, int]]:
        """Prompt and seed of each."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.resolved.config.sampling.seed]

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides what is in the file."""
        counting = settings_that_count(self.resolved)
        return {key: value for key, value in counting.items() if key not in _NO_MATTER} | {
            "prompts": self.prompts,
            "seeds": list(self.resolved.config.sampling.seed),
            "steps searched": list(dataclasses.replace(self, stages=()).steps),
            "keep_ranking": self.options.keep_ranking,
            "keep_sums": self.options.keep_sums,
        }


def search_masks(resolved: Resolved, options: SearchOptions, prompts: list[str], observer: SearchObserver) -> MaskFile:
    """Search, and write the mask file; returns it.

    Args:
        resolved: the settings of a run that would make videos of the prompts.
        options: what to keep, and where.
        prompts: each is searched with each seed.
        observer: is told how it goes on.

    Raises:
        AdaspaError: see :meth:`~adaspa_cli.config.search_masks.SearchOptions.check`,
            :func:`~adaspa_cli.models.loading.load_pipeline`, and below.
        OutputError: the disk is too small, the unfinished search that is there is another one, or another process is
            at it.
        RunError: the block sums are no numbers.
    """
    options.check(resolved.config.method)
    if resolved.config.sampling.steps_per_phase is not None:
        raise ConfigError("search-masks computes every step up to its last search", hint="drop steps_per_phase")
    check_folder(str(options.out.parent))
    output = dataclasses.replace(resolved.config.output, decode=False, lossless=False)
    resolved = dataclasses.replace(resolved, config=dataclasses.replace(resolved.config, output=output))
    if options.out.exists():
        finished = _finished(options.out, digest(_Job(resolved, options, prompts).settings))
        observer.skipped(options.out)
        return finished
    model = resolved.config.model
    observer.loading(model.source)
    with memory_errors(model.offload):
        pipe = load_pipeline(model, decode=False)
        check_sampling(pipe, resolved.config.sampling)
        stages = family_of(pipe).stages(pipe, resolved.config.sampling.steps)
        job = _Job(resolved, options, prompts, stages)
        prepare_folder(str(options.out.parent))
        with _claim(options.out) as claim:
            if claim.exclusive:
                clear_partial(options.out)
            _search(pipe, job, observer).finish(options.out)
    return MaskFile.open(options.out)


def _claim(out: Path) -> Claim:
    """Hold the name of a mask file while it is searched; raises OutputError if another process does."""
    claim = take(out.with_name(f".{out.name}.claim"))
    if claim is None:
        raise OutputError(f"another process is searching {out}", hint="choose another --out, or wait for it")
    return claim


def _finished(out: Path, settings: str) -> MaskFile:
    """The file of a search that is over; raises OutputError if it was another one."""
    found = MaskFile.open(out)
    if found.description.settings != settings:
        raise OutputError(
            f"{out} is there already, from a search with other settings",
            hint=f"choose another --out; adaspa masks info {out} shows what it is",
        )
    return found


def _search(pipe: Any, job: _Job, observer: SearchObserver) -> MaskSearch:
    """Run the videos that are still to be searched."""
    config, videos = job.resolved.config, job.videos
    exact = dataclasses.replace(config.method.searching, search_steps=job.steps, search_steps_for=None)

    def stop_after(step: int) -> None:
        """End the run after the last search step, in the way that diffusers offers."""
        if step >= job.steps[-1]:
            pipe._interrupt = True

    with Handle(pipe, config.method, policy=lambda _steps: search.policy) as handle:
        handle.engine.on_call = lambda plan: observer.phase(plan.phase)
        for told in (observer.step_done, stop_after):
            handle.clock.listen(Listener(Order.OBSERVERS, step_end=told))
        describe = partial(_describe, pipe, job, handle.layers)
        grid = family_of(pipe).video_grid(pipe, config.sampling)
        _check_disk(job, describe(TokenLayout(*grid, text_tokens=1, text_position="last")), observer)
        parts = MaskParts(job.options.out, job.settings, resume=job.options.resume)
        search = MaskSearch(make_policy(exact, config.sampling.steps, job.stages), parts, len(videos), describe)
        observer.started(len(videos) - search.done, job.steps[-1] + 1, handle.backend)
        for number in range(search.done, len(videos)):
            observer.video(number, *videos[number])
            sample(pipe, job.resolved, *videos[number])
            search.video_done()
    return search


def _describe(pipe: Any, job: _Job, layers: int, layout: TokenLayout) -> Description:
    """The file, as far as it is known before the search."""
    config, family = job.resolved.config, family_of(pipe)
    method = config.method.searching
    blocks, ranked = len(layout.video_blocks(method.block_size)), job.options.keep_ranking
    if ranked is not None:
        ranked = max(round(ranked * blocks), most_needed(method.sparsity, blocks, method.adapts_heads))
    both = family.facts.guided(config.sampling) and not config.method.share_cfg_masks
    return Description(
        model=model_facts(family.facts.pipeline, family.transformers(pipe), config.model),
        layout=layout,
        block_size=method.block_size,
        layers=layers,
        heads=family.shape(pipe).heads,
        branches=("cond", "uncond") if both else ("cond",),
        method=MethodFacts(
            method.name, method.sparsity, method.adapts_heads, method.lse_cache, method.selects_by, method.layer_budget
        ),
        steps=config.sampling.steps,
        search_steps=job.steps,
        prompts=tuple(job.prompts),
        seeds=config.sampling.seed,
        ranked=ranked,
        keeps_sums=job.options.keep_sums,
        settings=digest(job.settings),
        versions=versions(),
        stages=_layer_stages(pipe, job.stages),
    )


def _layer_stages(pipe: Any, stages: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The first layer and the first step of each transformer after the first."""
    family = family_of(pipe)
    layers = [count_layers(family.facts, one.config) for one in family.transformers(pipe)]
    return tuple(zip(accumulate(layers), stages, strict=False))


def _check_disk(job: _Job, facts: Description, observer: SearchObserver) -> None:
    """Tell the sizes before anything slow begins, and refuse a disk that is too small."""
    if not facts.video_blocks:
        raise ConfigError(
            f"{facts.layout.video_tokens} video tokens fill no block of {facts.block_size}",
            hint="a larger video, or a smaller --block-size",
        )
    masks = facts.masks
    sums = 0 if len(job.videos) == 1 else masks * facts.heads * facts.video_blocks**2 * 4
    if job.resolved.config.method.searching.scores_blocks:
        sums *= 2  # scores are added up as well
    observer.estimated(facts.data_bytes, sums)
    needed = 2 * facts.data_bytes + sums  # the parts stay until the file is whole
    folder = next(path for path in job.options.out.absolute().parents if path.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{folder} has {free / 1e9:.1f} GB left, and the search needs about {needed / 1e9:.1f} GB",
            hint="another --out, a smaller --keep-ranking, or a single prompt and seed, which need no sums on disk",
        )

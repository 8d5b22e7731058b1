"""``search-masks``: run as far as the last search step, and keep the masks of all layers in one file.

With several prompts and seeds they are chosen from the average; :mod:`adaspa_cli.maskfiles.search` has the memory that
this takes.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.layout import check_video_block
from adaspa_cli.config import Resolved
from adaspa_cli.config.families import count_layers
from adaspa_cli.config.kept_blocks import most_needed
from adaspa_cli.config.search_masks import SearchOptions
from adaspa_cli.distributed.world import World
from adaspa_cli.errors import ConfigError, OutputError
from adaspa_cli.files.claims import Claim, take
from adaspa_cli.files.folders import check_folder, prepare_folder
from adaspa_cli.files.whole import clear_partial
from adaspa_cli.hooks.clock import Listener, Order
from adaspa_cli.jobs.fingerprint import digest, settings_that_count
from adaspa_cli.jobs.follow import placed
from adaspa_cli.jobs.generate import JobObserver
from adaspa_cli.jobs.shard import Shard
from adaspa_cli.maskfiles import Description, MaskFile, MethodFacts
from adaspa_cli.maskfiles.check import model_facts
from adaspa_cli.maskfiles.parts import MaskParts, videos_done, work_folder
from adaspa_cli.maskfiles.search import MaskSearch, Recording
from adaspa_cli.maskfiles.shares import JOINED, join_shares, share_name
from adaspa_cli.masks import MaskPolicy
from adaspa_cli.masks.methods.registry import make_policy
from adaspa_cli.models.loading import device_name, load_pipeline
from adaspa_cli.models.registry import check_read, check_sampling, family_of
from adaspa_cli.report.machine import versions
from adaspa_cli.sampling.handle import Handle
from adaspa_cli.sampling.memory import memory_errors
from adaspa_cli.sampling.run import sample

_NO_MATTER = ("fps", "decode", "lossless", "vae_tiling", "vae_framewise")


class SearchObserver(JobObserver, Protocol):
    """Is notified of the progress of a search."""

    def estimated(self, file_bytes: int, sums_bytes: int) -> None: ...


@dataclass(frozen=True)
class _Job:
    """What is searched.

    Attributes:
        resolved: the settings, of a run that ends in latents.
        options: what to keep, and where.
        prompts: each is searched with each seed.
        stages: first step of each transformer after the first; not known before the model is loaded.
        shard: the share of the videos that this process searches; None is all.
    """

    resolved: Resolved
    options: SearchOptions
    prompts: list[str]
    stages: tuple[int, ...] = ()
    shard: Shard | None = None

    @classmethod
    def of(cls, resolved: Resolved, options: SearchOptions, prompts: list[str], shard: Shard | None = None) -> _Job:
        """From the settings of a run that may decode."""
        output = dataclasses.replace(resolved.config.output, decode=False, lossless=False)
        resolved = dataclasses.replace(resolved, config=dataclasses.replace(resolved.config, output=output))
        return cls(resolved, options, prompts, shard=shard)

    def on(self, pipe: Any) -> _Job:
        """The same with the stages of a pipeline."""
        return dataclasses.replace(self, stages=family_of(pipe).stages(pipe, self.resolved.config.sampling.steps))

    @property
    def policy(self) -> MaskPolicy:
        """What searches."""
        config = self.resolved.config
        exact = dataclasses.replace(config.method.searching, search_steps=self.steps, search_steps_for=None)
        return make_policy(exact, config.sampling.steps, self.stages)

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
        """Prompt and seed of each that this process searches."""
        videos = [(prompt, seed) for prompt in self.prompts for seed in self.resolved.config.sampling.seed]
        return videos if self.shard is None else self.shard.take(videos)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides what is in the file; the device is the one that was chosen, not ``auto``."""
        counting = settings_that_count(self.resolved)
        return {key: value for key, value in counting.items() if key not in _NO_MATTER} | {
            "device": device_name(self.resolved.config.model.device),
            "prompts": self.prompts,
            "seeds": list(self.resolved.config.sampling.seed),
            "steps searched": list(dataclasses.replace(self, stages=()).steps),
            "keep_ranking": self.options.keep_ranking,
            "keep_sums": self.options.keep_sums,
        }

    @property
    def former_settings(self) -> dict[str, Any]:
        """The same as adaspa 0.2 noted it: with the device as it was given, also ``auto``."""
        return self.settings | {"device": self.resolved.config.model.device}

    def parts(self, share: str = "", *, resume: bool) -> MaskParts:
        """The folder in which it, or a share of it, grows; raises as :class:`~adaspa_cli.maskfiles.parts.MaskParts`."""
        return MaskParts(self.options.out, self.settings, resume=resume, share=share, former=self.former_settings)


def search_masks(resolved: Resolved, options: SearchOptions, prompts: list[str], observer: SearchObserver) -> MaskFile:
    """Search, and write the mask file; returns it.

    Args:
        resolved: the settings of a run that would make videos of the prompts.
        options: what to keep, and where.
        prompts: each is searched with each seed.
        observer: is notified of the progress.

    Raises:
        AdaspaError: see :meth:`~adaspa_cli.config.search_masks.SearchOptions.check`,
            :func:`~adaspa_cli.models.loading.load_pipeline`, and below.
        OutputError: the disk is too small, the unfinished search that is there is another one, or another process is
            at it.
        RunError: the block sums are no numbers.
    """
    found = search_share(resolved, options, prompts, observer, None)
    assert found is not None
    return found


def search_share(
    resolved: Resolved,
    options: SearchOptions,
    prompts: list[str],
    observer: SearchObserver,
    shard: Shard | None,
    world: World | None = None,
) -> MaskFile | None:
    """Search a share of the videos; the process that ends last writes the mask file.

    Args:
        shard: the share, which goes with ``resume``; None searches all.
        world: the processes that make each video together, of which this one leads; the others
            :func:`follow_search`. They go without a share.

    Returns:
        The file; None if other shares are not complete.

    Raises:
        AdaspaError: as :func:`search_masks`, and below.
        ConfigError: there are more shares than videos.
    """
    if shard is not None:
        options = dataclasses.replace(options, resume=True)
    options.check(resolved.config.method)
    if resolved.config.sampling.steps_per_phase is not None:
        raise ConfigError("search-masks computes every step up to its last search", hint="drop steps_per_phase")
    check_folder(str(options.out.parent))
    world, job = World() if world is None else world, _Job.of(resolved, options, prompts, shard)
    if shard is not None and shard.of > len(dataclasses.replace(job, shard=None).videos):
        raise ConfigError(f"--shard {shard}: the search has fewer videos", hint="use at most as many shares as videos")
    if options.out.exists():
        finished = _finished(job)
        observer.skipped(options.out)
        world.tell(False)
        return finished
    world.tell(True)
    model = placed(resolved.config.model, world)
    observer.loading(model.source)
    with memory_errors(resolved.config, together=not world.teams.all.alone):
        pipe = load_pipeline(model, decode=False, linear=resolved.config.method.linear)
        check_sampling(pipe, resolved.config.sampling)
        check_read(pipe, resolved.config, (prompt for prompt, _ in job.videos), observer.note)
        job = job.on(pipe)
        prepare_folder(str(options.out.parent))
        if shard is not None:
            return _share(pipe, job, shard, observer)
        with _claim(options.out) as claim:
            if claim.exclusive:
                clear_partial(options.out)
            _search(pipe, job, observer, world).finish(options.out)
    world.tell(None)
    return MaskFile.open(options.out)


def follow_search(resolved: Resolved, options: SearchOptions, world: World) -> None:
    """Make the videos that the leader searches, until it has no more.

    Raises:
        AdaspaError: as the leader's.
    """
    if not world.hear():
        return  # the file is there
    job, model = _Job.of(resolved, options, []), placed(resolved.config.model, world)
    with memory_errors(resolved.config, together=True):
        pipe = load_pipeline(model, decode=False, linear=resolved.config.method.linear)
        job = job.on(pipe)
        policy = Recording(job.policy, lambda *_: None)
        with _at_work(pipe, job, lambda _steps: policy, world):
            while (told := world.hear()) is not None:
                sample(pipe, job.resolved, *told)


def _share(pipe: Any, job: _Job, shard: Shard, observer: SearchObserver) -> MaskFile | None:
    """Search the videos of a share, and join all shares if this was the last one."""
    out, names = job.options.out, [share_name(number, shard.of) for number in range(1, shard.of + 1)]
    _check_shares(out, {*names, JOINED})
    with _claim(out, f".{names[shard.number - 1]}"):
        search = _search(pipe, job, observer, World())
    videos = dataclasses.replace(job, shard=None).videos
    planned = [len(videos[number :: shard.of]) for number in range(shard.of)]
    done = [videos_done(out, name) for name in names]  # each share is noted before this: the last to end sees them all
    if not out.exists() and done != planned:
        return None
    claim = take(out.with_name(f".{out.name}.claim"))
    if claim is None:
        return None  # another process joins them
    with claim:
        if not out.exists():
            if claim.exclusive:
                clear_partial(out)
            parts = [job.parts(name, resume=True) for name in (*names, JOINED)]
            device = pipe._execution_device
            join_shares(search.policy.method, parts[-1], parts[:-1], search.describe, device, out)
    return MaskFile.open(out)


def _check_shares(out: Path, names: set[str]) -> None:
    """Refuse to share an unfinished search that was begun by one process, or by another number of them."""
    folder = work_folder(out)
    others = sorted(path.name for path in folder.iterdir() if path.name not in names) if folder.is_dir() else []
    if others:
        raise OutputError(
            f"the unfinished search in {folder} is not shared by as many processes: {others[0]} is there",
            hint="use the same --shard I/N as before; remove the folder, or choose another --out, to start over",
        )


def _claim(out: Path, of: str = "") -> Claim:
    """Hold the name of a mask file, or of a share, while it is searched; raises OutputError if another process does."""
    claim = take(out.with_name(f".{out.name}{of}.claim"))
    if claim is None:
        raise OutputError(f"another process is searching {out}{of}", hint="choose another --out, or wait for it")
    return claim


def _finished(job: _Job) -> MaskFile:
    """The file of a search that is over; raises OutputError if it was another one."""
    out = job.options.out
    found = MaskFile.open(out)
    if found.description.settings not in (digest(job.settings), digest(job.former_settings)):
        raise OutputError(
            f"{out} already exists, from a search with other settings",
            hint=f"choose another --out; adaspa masks info {out} shows what it is",
        )
    return found


@contextmanager
def _at_work(pipe: Any, job: _Job, policy: Callable[[int], MaskPolicy], world: World) -> Iterator[Handle]:
    """A method on a pipeline, in runs that end with the last search."""
    config = job.resolved.config

    def stop_after(step: int) -> None:
        """End the run after the last search step, in the way that diffusers offers."""
        if step >= job.steps[-1]:
            pipe._interrupt = True

    by_cost = config.parallel.head_deal == "cost"
    with Handle(pipe, config.method, policy=policy, teams=world.teams, deal_by_cost=by_cost) as handle:
        handle.clock.listen(Listener(Order.OBSERVERS, step_end=stop_after))
        yield handle


def _search(pipe: Any, job: _Job, observer: SearchObserver, world: World) -> MaskSearch:
    """Run the videos that are still to be searched."""
    config, videos = job.resolved.config, job.videos
    with _at_work(pipe, job, lambda _steps: search.policy, world) as handle:
        handle.engine.on_call = lambda plan: observer.phase(plan.phase)
        handle.clock.listen(Listener(Order.OBSERVERS, step_end=observer.step_done))
        describe = partial(_describe, pipe, job, handle.layers)
        grid = family_of(pipe).video_grid(pipe, config.sampling)
        _check_disk(job, describe(TokenLayout(*grid, text_tokens=1, text_position="last")), observer)
        share = "" if job.shard is None else share_name(job.shard.number, job.shard.of)
        parts = job.parts(share, resume=job.options.resume)
        search = MaskSearch(job.policy, parts, len(videos), describe, closes=job.shard is None)
        observer.started(len(videos) - search.done, job.steps[-1] + 1, handle.backend)
        for number in range(search.done, len(videos)):
            observer.video(number, *videos[number])
            world.tell(videos[number])
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
    check_video_block(facts.layout, facts.block_size)
    masks = facts.masks
    sums = 0 if len(job.videos) == 1 and job.shard is None else masks * facts.heads * facts.video_blocks**2 * 4
    if job.resolved.config.method.searching.scores_blocks:
        sums *= 2  # scores are added up as well
    observer.estimated(facts.data_bytes, sums)
    needed = 2 * facts.data_bytes + sums  # the parts stay until the file is whole
    folder = next(path for path in job.options.out.absolute().parents if path.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{folder} has {free / 1e9:.1f} GB left, and the search needs about {needed / 1e9:.1f} GB",
            hint="use another --out, a smaller --keep-ranking, or one prompt and seed, which need no sums on disk",
        )

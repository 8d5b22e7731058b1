"""``search-masks``: run as far as the last search step, and keep the masks of all layers in one file.

With several prompts and seeds the block sums of the same layer, branch and step are averaged, and the masks are chosen
from the average. Sums are added up on disk, so memory holds block sums (4 bytes a block) of one layer at a time,
whatever the numbers of layers and prompts: on the device those found, those stored and their sum, and one copy on the
CPU. With the masks that the run itself uses from step to step that is all. A single video needs no sums on disk.

Shapes: H heads, R query and C key blocks without text, W [H, Nq, Nk] block sums.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.config import Resolved
from adaspa_cli.config.mask_search import SearchOptions
from adaspa_cli.errors import ConfigError, OutputError, RunError
from adaspa_cli.files.folders import check_folder
from adaspa_cli.jobs.fingerprint import NOT_IN_FINGERPRINT, digest
from adaspa_cli.jobs.generate import JobObserver
from adaspa_cli.maskfiles import Description, MaskFile, MethodFacts
from adaspa_cli.maskfiles.check import model_facts
from adaspa_cli.maskfiles.parts import MaskParts
from adaspa_cli.maskfiles.ranking import most_needed, rank
from adaspa_cli.maskfiles.recording import Recording
from adaspa_cli.masks import Call, FoundMask, MaskPolicy
from adaspa_cli.masks.methods.registry import make_policy
from adaspa_cli.masks.text import pack_video, same_video_blocks, sums_with_text, video_part
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.models.registry import check_sampling, family_of
from adaspa_cli.report.machine import versions
from adaspa_cli.sampling.handle import Handle
from adaspa_cli.sampling.memory import memory_errors
from adaspa_cli.sampling.run import sample

_NO_MATTER = (*NOT_IN_FINGERPRINT, "fps", "decode", "lossless", "vae_tiling", "vae_framewise")


class SearchObserver(JobObserver, Protocol):
    """Is told how a search goes on."""

    def estimated(self, file_bytes: int, sums_bytes: int) -> None: ...


def search_masks(resolved: Resolved, options: SearchOptions, prompts: list[str], observer: SearchObserver) -> MaskFile:
    """Search, and write the mask file; returns it.

    Args:
        resolved: the settings of a run that would make videos of the prompts.
        options: what to keep, and where.
        prompts: each is searched with each seed.
        observer: is told how it goes on.

    Raises:
        AdaspaError: see :meth:`~adaspa_cli.config.mask_search.SearchOptions.check`,
            :func:`~adaspa_cli.models.loading.load_pipeline`, and below.
        OutputError: the disk is too small, or the unfinished search that is there is another one.
        RunError: the block sums are no numbers.
    """
    options.check(resolved.config.method)
    if resolved.config.sampling.steps_per_phase is not None:
        raise ConfigError("search-masks computes every step up to its last search", hint="drop steps_per_phase")
    check_folder(str(options.out.parent))
    output = dataclasses.replace(resolved.config.output, decode=False, lossless=False)
    resolved = dataclasses.replace(resolved, config=dataclasses.replace(resolved.config, output=output))
    config = resolved.config
    steps = config.method.searching.schedule(config.sampling.steps)[: 1 if options.first_step_only else None]
    settings = _settings(resolved, options, steps, prompts)
    if options.out.exists():
        finished = _finished(options.out, settings)
        observer.skipped(options.out)
        return finished
    jobs = [(prompt, seed) for prompt in prompts for seed in config.sampling.seed]
    observer.loading(config.model.source)
    with memory_errors(config.model.offload):
        pipe = load_pipeline(config.model, decode=False)
        check_sampling(pipe, config.sampling)
        search = _Search(pipe, resolved, options, steps, settings)
        with Handle(pipe, config.method, policy=lambda _steps: search.policy) as handle:
            handle.engine.on_action = observer.action
            handle.clock.on_step_end += [observer.step_done, search.stop_after]
            search.layers = handle.layers
            search.check_disk(len(jobs), observer)
            search.begin(len(jobs))
            observer.started(len(jobs) - search.parts.done, steps[-1] + 1, handle.backend)
            for number in range(search.parts.done, len(jobs)):
                observer.video(number, *jobs[number])
                search.number = number
                sample(pipe, resolved, *jobs[number])
                search.video_done()
    search.finish()
    return MaskFile.open(options.out)


def _settings(resolved: Resolved, options: SearchOptions, steps: tuple[int, ...], prompts: list[str]) -> dict[str, Any]:
    """Everything that decides what is in the file."""
    return {key: value for key, value in resolved.flat().items() if key not in _NO_MATTER} | {
        "prompts": prompts,
        "seeds": list(resolved.config.sampling.seed),
        "steps searched": list(steps),
        "keep_ranking": options.keep_ranking,
        "keep_sums": options.keep_sums,
    }


def _finished(out: Path, settings: dict[str, Any]) -> MaskFile:
    """The file of a search that is over; raises OutputError if it was another one."""
    found = MaskFile.open(out)
    if found.description.settings != digest(settings):
        raise OutputError(
            f"{out} is there already, from a search with other settings",
            hint=f"choose another --out; adaspa masks info {out} shows what it is",
        )
    return found


class _Search:
    """One search: what is common to its videos."""

    parts: MaskParts

    def __init__(
        self,
        pipe: Any,
        resolved: Resolved,
        options: SearchOptions,
        steps: tuple[int, ...],
        settings: dict[str, Any],
    ) -> None:
        self._pipe, self._resolved, self._options = pipe, resolved, options
        self._family = family_of(pipe)
        self._steps, self._settings = steps, settings
        config = resolved.config
        exact = dataclasses.replace(config.method.searching, search_steps=steps, search_steps_for=None)
        self._method: MaskPolicy = make_policy(exact, config.sampling.steps)
        self.policy = Recording(self._method, self._on_search)
        self._layout: TokenLayout | None = None
        self._branches: list[str] = []
        self._jobs = self.number = self.layers = 0

    def begin(self, jobs: int) -> None:
        """Make or find the work folder."""
        self._jobs = jobs
        self.parts = MaskParts(self._options.out, self._settings, resume=self._options.resume)

    def stop_after(self, step: int) -> None:
        """End the run after the last search step, in the way that diffusers offers."""
        if step >= self._steps[-1]:
            self._pipe._interrupt = True

    def video_done(self) -> None:
        """A video's searches are over."""
        if self._layout is None:
            raise RunError("no attention call was searched")
        self.parts.video_done(self._layout, self._branches)

    def check_disk(self, jobs: int, observer: SearchObserver) -> None:
        """Estimate the sizes before anything slow begins, and refuse a disk that is too small."""
        sampling = self._resolved.config.sampling
        layout = TokenLayout(*self._family.video_grid(self._pipe, sampling), text_tokens=1, text_position="last")
        if len(layout.video_blocks(self._block)) == 0:
            raise ConfigError(
                f"{layout.video_tokens} video tokens fill no block of {self._block}",
                hint="a larger video, or a smaller --block-size",
            )
        both = self._family.facts.guided(sampling) and not self._resolved.config.method.share_cfg_masks
        facts = self._describe(layout, ("cond", "uncond") if both else ("cond",))
        masks = self.layers * len(facts.branches) * len(self._steps)
        sums = 0 if jobs == 1 else masks * facts.heads * facts.video_blocks**2 * 4
        observer.estimated(facts.data_bytes, sums)
        needed = 2 * facts.data_bytes + sums  # the parts stay until the file is whole
        folder = next(path for path in self._options.out.absolute().parents if path.exists())
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OutputError(
                f"{folder} has {free / 1e9:.1f} GB left, and the search needs about {needed / 1e9:.1f} GB",
                hint="another --out, a smaller --keep-ranking, or a single prompt and seed, which need no sums on disk",
            )

    @property
    def _block(self) -> int:
        return self._resolved.config.method.searching.block_size

    def _ranked(self, blocks: int) -> int | None:
        """K: blocks of a row whose order is kept."""
        keep, method = self._options.keep_ranking, self._resolved.config.method.searching
        if keep is None:
            return None
        return max(round(keep * blocks), most_needed(method.sparsity, blocks, method.adapts_heads))

    def _describe(self, layout: TokenLayout, branches: tuple[str, ...]) -> Description:
        config, family = self._resolved.config, self._family
        method = config.method.searching
        return Description(
            model=model_facts(family.facts.pipeline, family.transformers(self._pipe), config.model),
            layout=layout,
            block_size=self._block,
            layers=self.layers,
            heads=family.shape(self._pipe).heads,
            branches=branches,
            method=MethodFacts(method.name, method.sparsity, method.adapts_heads, method.lse_cache),
            steps=config.sampling.steps,
            search_steps=self._steps,
            prompts=tuple(self._settings["prompts"]),
            seeds=config.sampling.seed,
            ranked=self._ranked(len(layout.video_blocks(self._block))),
            keeps_sums=self._options.keep_sums,
            settings=digest(self._settings),
            versions=versions(),
        )

    def _on_search(self, call: Call, block_sums: Tensor) -> None:
        """Take in W of one layer, branch and step."""
        if not torch.isfinite(block_sums).all():
            raise RunError(f"the attention weights of layer {call.layer} are not finite, so they have no mask")
        self._layout = self.parts.layout or self._layout or call.layout
        if not same_video_blocks(call.layout, self._layout, self.policy.block_size):
            raise RunError(f"the prompts do not leave the same blocks to the video: {call.layout} and {self._layout}")
        if call.branch not in self._branches:
            self._branches.append(call.branch)
        place = (call.layer, call.branch, call.step)
        if self.parts.has_mask(place):
            return  # found before an interruption
        video = video_part(block_sums, call.layout, self.policy.block_size)
        text = block_sums.sum((-1, -2)) - video.sum((-1, -2))
        if self.number < self._jobs - 1:
            self.parts.add(place, self.number, video, text)
            return
        video, text = (x / self._jobs for x in self.parts.sum(place, self.number, video, text))
        layout = self._layout
        found = self._method.search(
            dataclasses.replace(call, layout=layout), sums_with_text(video, text, layout, self.policy.block_size)
        )
        if found.recall is None:
            raise RunError(f"the search in layer {call.layer} gave no recall")
        self.parts.write_mask(place, found.mask.density(), found.recall, self._tensors(found, layout, video, text))

    def _tensors(self, found: FoundMask, layout: TokenLayout, video: Tensor, text: Tensor) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        ranked = self._ranked(video.shape[-1])
        if ranked is None:
            tensors["bits"] = pack_video(found.mask, layout)
        else:
            ranking = rank(video, text, ranked)
            tensors |= {"ranking": ranking.order, "recall_by_rank": ranking.recall_by_rank}
        if self._options.keep_sums:
            tensors |= {"sums": video.to(torch.float16), "text": text}
        return tensors

    def finish(self) -> None:
        """Join the parts to the file."""
        if self.parts.layout is None:
            raise RunError("the search holds no video")
        self.parts.join(self._options.out, self._describe(self.parts.layout, tuple(self.parts.branches)))

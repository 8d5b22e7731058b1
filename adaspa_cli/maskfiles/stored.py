"""Masks from a file instead of a search; optionally their recall on the prompt is measured.

The file's search steps say from which step on its masks hold. Before the first, attention is dense, unless the run
uses the masks from its start. If a minimum recall is set, the first mask of each layer is not used at once: that
step is dense, its exact block sums (AdaSpa, arXiv 2502.21079, two passes) give the mask's recall on this very
attention, and a layer below is searched from the same sums if the run says so.

Shapes: H heads, Nq and Nk blocks, W [H, Nq, Nk] block sums.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask
from adaspa_cli.attention.mask_conversion import unpack_words
from adaspa_cli.config.schema import MethodConfig
from adaspa_cli.maskfiles.check import check_call, check_stages, open_masks
from adaspa_cli.maskfiles.description import Description
from adaspa_cli.maskfiles.ranking import choose_counts, ranked_blocks
from adaspa_cli.maskfiles.reader import MaskFile
from adaspa_cli.masks.forwarding import Forwarding
from adaspa_cli.masks.methods.registry import make_policy
from adaspa_cli.masks.plan import CHECK, DENSE, LOAD, SEARCH, SPARSE, CallPlan
from adaspa_cli.masks.policy import Call, FoundMask, MaskPolicy
from adaspa_cli.masks.recall import mask_recall
from adaspa_cli.masks.text import with_text

_logger = logging.getLogger(__name__)

Key = tuple[int, str, int]  # layer, branch, sample


@dataclass(frozen=True)
class Check:
    """How well a loaded mask fits one layer, branch and sample of a run.

    Attributes:
        step: at which it was measured.
        stored: recall [H] of the search that made the file, of all heads of the layer.
        measured: recall [H] on the run's own attention, of all heads too.
        below: whether the mean over the heads is below the minimum.
        searched: whether the layer was searched again.
    """

    step: int
    stored: Tensor
    measured: Tensor
    below: bool
    searched: bool


@dataclass(frozen=True)
class StoredMasks(Forwarding):
    """The masks of a file in one run; ``method`` searches the layers that fall back.

    Attributes:
        file: the masks.
        schedule: (step of the run, step of the file), ascending: from the one on the masks of the other hold.
        sparsity: γ; another than the file's only if the file keeps a ranking.
        head_adaptive: spread the sparsity over the heads; as above.
        min_recall: mean recall over the heads that a layer's mask must have on the run's attention; None measures none.
        falls_back: search a layer whose recall is lower, instead of a warning.
        checks: what was measured in this run; the only state.
    """

    file: MaskFile
    schedule: tuple[tuple[int, int], ...]
    sparsity: float
    head_adaptive: bool
    min_recall: float | None = None
    falls_back: bool = True
    checks: dict[Key, Check] = field(default_factory=dict)

    @property
    def search_rows(self) -> int:
        return 1  # a recall that is measured is exact

    def keeps_lse(self, step: int) -> bool:  # noqa: ARG002
        return False

    def decide(self, call: Call, last_search: int | None) -> CallPlan:
        """Load each mask at the first executed call at or after its step.

        A layer that fell back searches there again, in two passes: for a few layers no LSE is kept.

        Raises:
            MaskFileError: the masks are for other tokens, or lack the guidance branch.
        """
        check_call(self.file, call.branch, call.layout)
        due = [step for step, _ in self._due(call)]
        if not due:
            return DENSE
        if last_search is not None and last_search >= due[-1]:
            return SPARSE
        if self._fell_back(call):
            return SEARCH
        if last_search is None and self.min_recall is not None:
            return CHECK
        return LOAD

    def example(self) -> Call:
        facts = self.file.description
        return Call(0, 0, facts.branches[0], 0, facts.layout)

    def load(self, call: Call, device: torch.device) -> FoundMask:
        """Read the mask of the call's layer, branch and step, and take that of its heads; waits for the device once.

        Raises:
            MaskFileError: corrupt.
        """
        step = self._due(call)[-1][1]
        place = (call.layer, call.branch, step)
        blocks = self.file.description.video_blocks
        if self.file.description.ranked is None:
            kept = unpack_words(self.file.read(place, "bits").to(device), blocks)
            recall = torch.tensor(self.file.entry(place).recall, dtype=torch.float32, device="cpu")
        else:
            ranking = self.file.ranking(place)
            counts = choose_counts(ranking, self.sparsity, blocks, self.head_adaptive)
            recall = ranking.recall_by_rank.gather(1, counts[:, None])[:, 0]
            kept = ranked_blocks(ranking.order.to(device), counts.to(device), blocks)
        mask = BlockMask.from_bool(with_text(kept, call.layout, self.block_size), self.block_size)
        counts, indices, recall = (call.heads.mine(x) for x in (mask.counts, mask.indices, recall.to(device)))
        return FoundMask(BlockMask(counts, indices, mask.key_blocks, mask.block_size), recall, loaded=True)

    def search(self, call: Call, block_sums: Tensor, scores: Tensor | None = None) -> FoundMask:
        """Measure the loaded mask in W; search in W instead if its recall is too low. Waits for the device."""
        if self._fell_back(call) or self.min_recall is None:
            return self.method.search(call, block_sums, scores)
        loaded = self.load(call, block_sums.device)
        measured = call.heads.gather(mask_recall(loaded.mask.to_bool(), block_sums))
        below = not float(measured.mean()) >= self.min_recall  # also where it is not a number
        if below and not any(check.below for check in self.checks.values()):
            _logger.warning(
                "layer %d: the loaded mask recalls %.3f of this attention, less than %s; the report has all layers",
                call.layer,
                float(measured.mean()),
                self.min_recall,
            )
        stored = torch.full_like(measured, torch.nan) if loaded.recall is None else call.heads.gather(loaded.recall)
        searched = below and self.falls_back
        self.checks[call.layer, call.branch, call.sample] = Check(call.step, stored, measured, below, searched)
        return self.method.search(call, block_sums, scores) if searched else loaded

    def _due(self, call: Call) -> list[tuple[int, int]]:
        """Of the schedule what holds at a call or did before, in the stage of its transformer."""
        first = self.stage_of(call.step)
        return [(step, stored) for step, stored in self.schedule if first <= step <= call.step]

    def _fell_back(self, call: Call) -> bool:
        check = self.checks.get((call.layer, call.branch, call.sample))
        return check is not None and check.searched


def stored_schedule(
    file: Description, steps: int, stages: tuple[int, ...] = (), *, from_start: bool
) -> tuple[tuple[int, int], ...]:
    """When the masks of a file hold in a run of ``steps`` steps: (step of the run, step of the file), ascending.

    Steps keep their place in their transformer's stage, if that of the file's run had another number of steps; of two
    that fall together the later one holds.

    Args:
        file: of which the masks are.
        steps: of the run.
        stages: the first step of each transformer after the first.
        from_start: the first masks of each stage hold from its first step on.
    """
    schedule: list[tuple[int, int]] = []
    theirs, own = (0, *(first for _, first in file.stages), file.steps), (0, *stages, steps)
    for (first, end), (begin, stop) in zip(pairwise(theirs), pairwise(own), strict=True):
        kept = [step for step in file.search_steps if first <= step < end]
        placed = {begin + (step - first) * (stop - begin) // (end - first): step for step in kept if stop > begin}
        moved = sorted(placed.items())
        if from_start and moved:
            moved[0] = (begin, moved[0][1])
        schedule += moved
    return tuple(schedule)


def run_policy(config: MethodConfig, steps: int) -> MaskPolicy:
    """Return the policy of a run with ``steps`` denoising steps, with masks from a file if the settings name one.

    Raises:
        ConfigError, MaskFileError: as :func:`~adaspa_cli.masks.methods.registry.make_policy` and :func:`open_masks`.
    """
    file = open_masks(config)
    return make_policy(config.algorithm, steps) if file is None else stored_policy(config, file, steps)


def stored_policy(
    config: MethodConfig, file: MaskFile, steps: int, stages: tuple[int, ...] | None = None
) -> StoredMasks:
    """Return the policy of a run with ``steps`` denoising steps that takes its masks from a file.

    Args:
        config: of the run.
        file: that its settings name.
        steps: of the run.
        stages: as :attr:`MaskPolicy.stages`; None is at the same share of the run as in the file's.

    Raises:
        MaskFileError: as :func:`~adaspa_cli.maskfiles.check.check_stages`.
    """
    facts = file.description
    if stages is None:
        stages = tuple(first * steps // facts.steps for _, first in facts.stages)
    else:
        check_stages(file, steps, stages)
    return StoredMasks(
        file=file,
        schedule=stored_schedule(facts, steps, stages, from_start=config.mask_file.masks_from_start),
        sparsity=config.searching.sparsity,
        head_adaptive=config.searching.adapts_heads,
        method=make_policy(config.algorithm, steps, stages),
        min_recall=config.mask_file.masks_min_recall,
        falls_back=config.mask_file.masks_fallback == "search",
    )

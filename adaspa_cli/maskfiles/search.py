"""A search over videos: their block sums are averaged, and the masks chosen from the average.

Sums are added up on disk, so memory holds block sums (4 bytes a block) of one layer at a time, whatever the numbers
of layers and videos: on the device those found, those stored and their sum, and one copy on the CPU. With the masks
that the run itself uses from step to step that is all. A single video needs no sums on disk.

Shapes: H heads, R query and C key blocks without text, W [H, Nq, Nk] block sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.layout import same_video_blocks
from adaspa_cli.distributed.heads import ALL_HEADS
from adaspa_cli.errors import RunError
from adaspa_cli.maskfiles.description import Description
from adaspa_cli.maskfiles.parts import MaskParts
from adaspa_cli.maskfiles.ranking import rank
from adaspa_cli.masks.forwarding import Forwarding
from adaspa_cli.masks.policy import Call, FoundMask, MaskPolicy
from adaspa_cli.masks.text import pack_video, sums_with_text, video_part


@dataclass(frozen=True)
class Recording(Forwarding):
    """Does what ``method`` does, and shows the block sums W [H, Nq, Nk] of each search, and the scores that it chooses
    by if it has any, before the mask is chosen. They are of all heads, also where processes share these."""

    on_search: Callable[[Call, Tensor, Tensor | None], None]

    def search(self, call: Call, block_sums: Tensor, scores: Tensor | None = None) -> FoundMask:
        whole = dataclasses.replace(call, heads=ALL_HEADS)
        every = None if scores is None else call.heads.gather(scores)
        self.on_search(whole, call.heads.gather(block_sums), every)
        return super().search(call, block_sums, scores)


class MaskSearch:
    """One search over some videos.

    Attributes:
        policy: of a run that searches: what it finds is taken in here.
        describe: the file, from the layout of the first video.
    """

    def __init__(
        self,
        method: MaskPolicy,
        parts: MaskParts,
        videos: int,
        describe: Callable[[TokenLayout], Description],
        *,
        closes: bool = True,
    ) -> None:
        """
        Args:
            method: chooses the masks.
            parts: the work folder, with the videos that are done.
            videos: of the whole search.
            describe: the file, without its branches and entries, from the layout of the first video.
            closes: whether the masks are chosen with the last video; otherwise sums are all that is kept.
        """
        self.policy = Recording(method, self.take_in)
        self._method, self._parts, self._videos, self.describe = method, parts, videos, describe
        self._closes = closes
        self._facts: Description | None = None
        self._branches: list[str] = []

    @property
    def done(self) -> int:
        """Videos whose searches are over: the number of the one that is being made."""
        return self._parts.done

    def video_done(self) -> None:
        """A video's searches are over.

        Raises:
            RunError: there was none.
        """
        if self._facts is None:
            raise RunError("no attention call was searched")
        self._parts.video_done(self._facts.layout, self._branches)

    def take_in(self, call: Call, block_sums: Tensor, scores: Tensor | None = None) -> None:
        """Take in W of one layer, branch and step, and the scores of its blocks.

        Raises:
            RunError: the block sums are no numbers, or the text moves the video's blocks.
            OutputError: the disk is full.
        """
        if not torch.isfinite(block_sums).all():
            raise RunError(f"the attention weights of layer {call.layer} are not finite, so they have no mask")
        self._facts = facts = self._facts or self.describe(self._parts.layout or call.layout)
        if not same_video_blocks(call.layout, facts.layout, self.policy.block_size):
            raise RunError(f"the prompts do not leave the same blocks to the video: {call.layout} and {facts.layout}")
        if call.branch not in self._branches:
            self._branches.append(call.branch)
        place = (call.layer, call.branch, call.step)
        if self._parts.has_mask(place):
            return  # found before an interruption
        # Scores are added up as if they were the block sums of further heads.
        both = block_sums if scores is None else torch.cat([block_sums, scores])
        video = video_part(both, call.layout, self.policy.block_size)
        text = both.sum((-1, -2)) - video.sum((-1, -2))
        if self.done < self._videos - 1 or not self._closes:
            self._parts.add(place, self.done, video, text)
            return
        video, text = (x / self._videos for x in self._parts.sum(place, self.done, video, text))
        choose_mask(self._method, self._parts, facts, call, video, text)

    def finish(self, out: Path) -> None:
        """Join the parts to the file.

        Raises:
            RunError: there was no video.
            OutputError: it cannot be written.
        """
        if self._parts.layout is None:
            raise RunError("the search holds no video")
        facts = self.describe(self._parts.layout)
        self._parts.join(out, dataclasses.replace(facts, branches=tuple(self._parts.branches)))


def choose_mask(
    method: MaskPolicy, parts: MaskParts, facts: Description, call: Call, video: Tensor, text: Tensor
) -> None:
    """Choose a mask from mean block sums, and write it.

    Args:
        parts: takes the mask.
        call: its place in the run.
        video: [H, R, C], or [2H, R, C] with the scores of the blocks after their sums.
        text: the mass with text of each, [H] or [2H].

    Raises:
        RunError: the method tells no recall.
        OutputError: the disk is full.
    """
    heads = facts.heads
    means = sums_with_text(video, text, facts.layout, method.block_size)
    scores = means[heads:] if len(means) > heads else None
    found = method.search(dataclasses.replace(call, layout=facts.layout), means[:heads], scores)
    video, text = video[:heads], text[:heads]
    if found.recall is None:
        raise RunError(f"the search in layer {call.layer} gave no recall")
    place = (call.layer, call.branch, call.step)
    parts.write_mask(place, found.mask.density(), found.recall, _tensors(facts, found, video, text))


def _tensors(facts: Description, found: FoundMask, video: Tensor, text: Tensor) -> dict[str, Tensor]:
    """What the file keeps of one mask, by kind, as :meth:`Description.kinds` has it."""
    tensors: dict[str, Tensor] = {}
    if facts.ranked is None:
        tensors["bits"] = pack_video(found.mask, facts.layout)
    else:
        ranking = rank(video, text, facts.ranked)
        tensors |= {"ranking": ranking.order, "recall_by_rank": ranking.recall_by_rank}
    if facts.keeps_sums:
        tensors |= {"sums": video.to(torch.float16), "text": text}
    return tensors

"""A search whose videos several processes share: each adds up its own block sums, and the last one joins them.

Sums are joined in the order of the shares, so the file does not depend on which process ends last. It is that of one
process but for the rounding of float32 sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.layout import same_video_blocks
from adaspa_cli.errors import RunError
from adaspa_cli.maskfiles.description import Description
from adaspa_cli.maskfiles.parts import MaskParts
from adaspa_cli.maskfiles.search import choose_mask
from adaspa_cli.masks.policy import Call, MaskPolicy

JOINED = "joined"


def share_name(number: int, of: int) -> str:
    """The folder of a share, from 1."""
    return f"{number}-of-{of}"


def join_shares(
    method: MaskPolicy,
    joined: MaskParts,
    shares: Sequence[MaskParts],
    describe: Callable[[TokenLayout], Description],
    device: torch.device,
    out: Path,
) -> None:
    """Choose the masks from the sums of all shares, and write the file.

    Args:
        method: chooses the masks.
        joined: holds those that are chosen.
        shares: all of them, complete, in their order.
        describe: the file, from the layout of the first video.
        device: where sums are added.

    Raises:
        RunError: a share holds other videos than it says, or the text moves the video's blocks.
        OutputError: the file cannot be written.
    """
    layout = shares[0].layout
    if layout is None:
        raise RunError("the search holds no video")
    facts = dataclasses.replace(describe(layout), branches=tuple(shares[0].branches))
    for share in shares:
        assert share.layout is not None
        if not same_video_blocks(share.layout, layout, method.block_size):
            raise RunError(f"the prompts do not leave the same blocks to the video: {share.layout} and {layout}")
    videos = sum(share.done for share in shares)
    for place in facts.places():
        if joined.has_mask(place):
            continue  # chosen before an interruption
        video, text = shares[0].stored(place, device)
        for share in shares[1:]:
            more_video, more_text = share.stored(place, device)
            video, text = video + more_video, text + more_text
        layer, branch, step = place
        call = Call(layer, step, branch, 0, layout)
        choose_mask(method, joined, facts, call, video / videos, text / videos)
    joined.join(out, facts)

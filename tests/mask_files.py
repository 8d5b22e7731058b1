"""Small mask files with random masks, made without a model."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.maskfiles import Description, MaskFile, MethodFacts, ModelFacts, write_mask_file, write_part
from adaspa_cli.maskfiles.description import Place
from adaspa_cli.maskfiles.ranking import rank
from adaspa_cli.masks.selection import select
from adaspa_cli.masks.text import pack_video, video_part

LAYOUT = TokenLayout(
    frames=3, height=4, width=8, text_tokens=5, text_position="last"
)  # 12 video blocks of 8, 1 of text
BLOCK, HEADS = 8, 2


def description(**changed: Any) -> Description:
    """Two layers, two heads, two branches, two search steps."""
    usual = Description(
        model=ModelFacts("tiny", False, "HunyuanVideoPipeline", "0" * 64),
        layout=LAYOUT,
        block_size=BLOCK,
        layers=2,
        heads=HEADS,
        branches=("cond", "uncond"),
        method=MethodFacts("adaspa", 0.75, True, True),
        steps=14,
        search_steps=(2, 8),
        prompts=("a red circle", "ein grüner Stern"),
        seeds=(0, 1),
        ranked=None,
        keeps_sums=False,
        settings="0" * 64,
        versions={"adaspa": "0"},
    )
    return dataclasses.replace(usual, **changed)


def block_sums(place: Place, layout: TokenLayout = LAYOUT, block: int = BLOCK, seed: int = 0) -> Tensor:
    """W [H, Nq, Nk] of one mask: skewed, positive, the same at each call."""
    layer, branch, step = place
    random = torch.Generator().manual_seed(1000 * layer + 100 * len(branch) + step + 10_000 * seed)
    blocks = layout.blocks(block)
    return torch.randn(HEADS, blocks, blocks, generator=random).mul(2).exp()


def small_file(path: Path, seed: int = 0, **changed: Any) -> MaskFile:
    """Write a mask file whose masks are AdaSpa's of :func:`block_sums`."""
    facts = description(**changed)
    parts = {}
    for place in facts.places():
        sums = block_sums(place, facts.layout, facts.block_size, seed)
        size, method = (facts.block_size, facts.block_size), facts.method
        found = select(sums, facts.layout, size, method.sparsity, head_adaptive=method.head_adaptive)
        video = video_part(sums, facts.layout, size)
        text = sums.sum((-1, -2)) - video.sum((-1, -2))
        tensors = {}
        if facts.ranked is None:
            tensors["bits"] = pack_video(found.mask, facts.layout)
        else:
            ranking = rank(video, text, facts.ranked)
            tensors |= {"ranking": ranking.order, "recall_by_rank": ranking.recall_by_rank}
        if facts.keeps_sums:
            tensors |= {"sums": video.to(torch.float16), "text": text}
        assert found.recall is not None
        parts[place] = path.with_name(f"{path.name}.{'.'.join(map(str, place))}")
        write_part(parts[place], place, found.mask.density().tolist(), found.recall.tolist(), tensors)
    write_mask_file(path, facts, parts)
    for part in parts.values():
        part.unlink()
    return MaskFile.open(path)

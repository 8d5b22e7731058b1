"""A method of your own: a row keeps the fewest blocks that hold a share of its attention ("top p").

Runs on a CPU in seconds, on the bundled model at a small size: python examples/custom_policy.py
What a policy is and what its plans mean: docs/own-method.md.
"""

from dataclasses import dataclass
from importlib.resources import files

import torch
from diffusers import HunyuanVideoPipeline
from torch import Tensor

import adaspa_cli
from adaspa_cli.attention import BlockMask
from adaspa_cli.masks import Call, CallPlan, FoundMask, MaskPolicy
from adaspa_cli.masks.plan import SEARCH, SPARSE


@dataclass(frozen=True)
class TopP(MaskPolicy):
    """Searches at the first step, densely; all later steps are sparse."""

    share: float = 0.9
    block_size: tuple[int, int] = (64, 64)

    def decide(self, call: Call, last_search: int | None) -> CallPlan:
        return SEARCH if last_search is None else SPARSE

    def search(self, call: Call, block_sums: Tensor, scores: Tensor | None = None) -> FoundMask:
        """From the exact attention weight of each block, [heads, query blocks, key blocks], to the blocks kept."""
        heaviest, order = block_sums.sort(dim=-1, descending=True)
        before = heaviest.cumsum(-1) - heaviest  # what the blocks ahead of each one hold
        enough = self.share * block_sums.sum(-1, keepdim=True)
        kept = torch.zeros_like(block_sums, dtype=torch.bool).scatter(-1, order, before < enough)
        for block in call.layout.text_blocks(self.block_size[0]):  # few, and all frames depend on them
            kept[:, block], kept[:, :, block] = True, True
        recall = (block_sums * kept).sum((1, 2)) / block_sums.sum((1, 2))
        return FoundMask(BlockMask.from_bool(kept, self.block_size), recall)


def main() -> None:
    pipe = HunyuanVideoPipeline.from_pretrained(str(files("adaspa_cli") / "assets" / "tiny"))
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 96, "width": 96, "num_frames": 9, "num_inference_steps": 4}
    with adaspa_cli.apply(pipe, policy=TopP(share=0.8)) as handle:
        pipe(prompt="a red circle moves left on a blue background", **size, generator=torch.manual_seed(0))
    for step, phase in dict.fromkeys((call.step, call.plan.phase) for call in handle.engine.calls):
        densities = [float(c.density.mean()) for c in handle.engine.calls if c.step == step and c.density is not None]
        print(f"step {step}: {phase}, density {sum(densities) / len(densities) if densities else 1:.0%}")


if __name__ == "__main__":
    main()

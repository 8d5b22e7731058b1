"""What it costs in recall if both branches of classifier-free guidance use the conditional one's masks.

    python -m scripts.cfg_recall --prompt "a red circle moves left on a blue background" \\
        --set true_cfg_scale=3 --set negative_prompt="a blue square"

Each branch searches masks of its own, as a run without --share-cfg-masks does. Of the unconditional branch's own exact
block sums, the share that its own mask keeps, and the share that the conditional mask of the same layer and step keeps:
means over layers and heads, by search step.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, product
from typing import Any

import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.commands.settings import parse_settings
from adaspa_cli.config import Resolved, resolve
from adaspa_cli.errors import AdaspaError, ConfigError
from adaspa_cli.hooks.clock import Listener, Order
from adaspa_cli.maskfiles.search import Recording
from adaspa_cli.masks import Call, FoundMask, MaskPolicy
from adaspa_cli.masks.methods.registry import make_policy
from adaspa_cli.masks.recall import mask_recall
from adaspa_cli.masks.text import fit_to_text
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.models.registry import check_sampling
from adaspa_cli.sampling.handle import Handle
from adaspa_cli.sampling.run import sample


@dataclass
class Comparison:
    """Recalls of the unconditional branch [layers, H] by step: with its own masks, and with the other branch's."""

    own: dict[int, list[Tensor]] = field(default_factory=dict)
    shared: dict[int, list[Tensor]] = field(default_factory=dict)
    _lent: dict[int, tuple[FoundMask, TokenLayout]] = field(default_factory=dict)  # by layer, of the current step

    def listener(self, method: MaskPolicy) -> Callable[[Call, Tensor, Tensor | None], None]:
        """Takes in the block sums W [H, Nq, Nk], and scores if there are any, of each search of one run."""

        def on_search(call: Call, block_sums: Tensor, scores: Tensor | None) -> None:
            found = method.search(call, block_sums, scores)
            if call.branch == "cond":
                self._lent[call.layer] = found, call.layout
                return
            lent = fit_to_text(*self._lent[call.layer], call.layout)
            self.own.setdefault(call.step, []).append(mask_recall(found.mask.to_bool(), block_sums))
            self.shared.setdefault(call.step, []).append(mask_recall(lent.mask.to_bool(), block_sums))

        return on_search

    def rows(self) -> list[tuple[str, float, float, float]]:
        """By step and over all: mean recall with own and with shared masks, and what the worst head loses."""
        if not self.own:
            raise ConfigError(
                "the run has no unconditional branch that searches", hint="HunyuanVideo takes true_cfg_scale above 1"
            )
        groups = [(f"step {step}", [step]) for step in sorted(self.own)] + [("all", sorted(self.own))]
        rows = []
        for name, steps in groups:
            own, shared = (torch.stack([x for step in steps for x in by[step]]) for by in (self.own, self.shared))
            rows.append((name, float(own.mean()), float(shared.mean()), float((own - shared).max())))
        return rows


def compare(resolved: Resolved, note: Callable[[str], None] = lambda _text: None) -> Comparison:
    """Run every prompt with every seed, and compare the branches' masks; ``note`` is told of each step.

    Raises:
        AdaspaError: as a run does.
    """
    config = resolved.config
    comparison = Comparison()
    pipe = load_pipeline(config.model, decode=False)
    check_sampling(pipe, config.sampling)

    def policy(steps: int) -> MaskPolicy:
        method = make_policy(config.method.algorithm, steps)
        return Recording(method, comparison.listener(method))

    videos = list(product(config.prompts.prompt, config.sampling.seed))
    done, steps = count(1), len(videos) * config.sampling.steps
    with Handle(pipe, config.method, policy=policy) as handle:
        handle.clock.listen(Listener(Order.OBSERVERS, step_end=lambda _: note(f"{next(done)} of {steps} steps done")))
        for prompt, seed in videos:
            sample(pipe, resolved, prompt, seed)
    return comparison


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", action="append", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of adaspa generate")
    options = parser.parse_args()
    try:
        settings: dict[str, Any] = {"prompt": options.prompt, **parse_settings(options.set), "decode": False}
        rows = compare(resolve(settings), lambda text: print(text, file=sys.stderr, flush=True)).rows()
    except AdaspaError as error:
        print(f"cfg_recall: {error}" + (f" ({error.hint})" if error.hint else ""), file=sys.stderr)
        return 1
    print(f"{'':<10}{'own':>8}{'shared':>8}{'most lost by a head':>22}")
    for name, own, shared, worst in rows:
        print(f"{name:<10}{own:>8.3f}{shared:>8.3f}{worst:>22.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

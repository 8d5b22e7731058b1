"""What the figures on a page mean, a sentence each, for readers who know none of the project's words."""

from __future__ import annotations

from collections.abc import Collection

from adaspa_cli.report.schema import Report
from adaspa_cli.report.words import sparsity_words

PHASES = {
    "dense": "every block of attention is computed.",
    "merged": "similar tokens are merged before attention, and every block of what is left is computed.",
    "search": "attention is dense, and the exact weights of each block choose the mask: the blocks to compute "
    "from then on.",
    "cached search": "the exact weights of each block choose a new mask, but attention is not dense: the softmax sums "
    "that this needs are known from an earlier step.",
    "sparse": "only the blocks of the mask are computed.",
    "estimate": "only the blocks of a mask are computed, which is estimated from this step's queries and keys.",
    "mask check": "attention is dense, to measure how well the mask from a file fits this video.",
    "loaded masks": "only the blocks of a mask are computed, which was read from a file.",
    "skipped": "a cache reused earlier results, and attention did not run.",
}
PSNR = (
    "PSNR measures how close two videos are, pixel by pixel. As a rule of thumb: 40 dB and above, no difference to "
    "see; about 30 dB, small differences; below 25 dB, shapes or motion differ. SSIM compares structure, and is 1 "
    "where the frames are equal. Neither says which video looks better."
)
RECALL = "Recall: the share of the attention weights that lies in these blocks; with a recall of 1 nothing is lost."
POOLED = (
    "Pooled share: the share of the attention weights that lies in left-out blocks and is represented by one summary "
    "of each, its mean key and value."
)
REPAIR_ERROR = (
    "Error after repair: how far the output of attention still is from dense attention, relative to the dense output's "
    "norm, estimated from query rows that attend densely (probes) and correct all others."
)


def density(report: Report) -> str | None:
    """What the density of a run is; None where it is unknown or all blocks were computed."""
    if report.density is None or report.density == 1:
        return None
    size = report.setting("block_size", 64)
    share = "The share left out, in the run's name, counts blocks without text at sparse steps only."
    return (
        f"Density is the share of the blocks of attention ({size} x {size} pairs of tokens) that were computed, over "
        f"the whole run.{'' if sparsity_words(report, str) is None else ' ' + share}"
    )


def phases(reports: Collection[Report]) -> dict[str, str]:
    """What is done in each phase of these runs; nothing where all runs were dense."""
    there = {step.phase for report in reports for step in report.steps}
    return {phase: said for phase, said in PHASES.items() if phase in there} if there != {"dense"} else {}

"""What head-adaptive sparsity did to the recall of the heads: two rows of a bench, search by search.

    python -m scripts.head_recall BENCH/runs/adaspa BENCH/runs/adaspa-no-head-adaptive

The folders hold the reports of the same prompts and seeds. Of each head the density that adaption gave it, and its
recall with and without; heads are sparser or denser than the median head of their search.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from adaspa_cli.masks.selection import RECALL_THRESHOLD


def searches(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Searches of all reports, by prompt, seed, layer, branch, sample and step."""
    found = {}
    for path in sorted(folder.glob("*.report.json")):
        report = json.loads(path.read_text())
        for search in report["searches"]:
            place = (search[name] for name in ("layer", "branch", "sample", "step"))
            found[report["prompt"], report["seed"], *place] = search
    return found


def compare(adaptive: dict[Any, dict[str, Any]], plain: dict[Any, dict[str, Any]]) -> dict[str, float]:
    """The figures, by what they are.

    Raises:
        ValueError: the two do not hold the same searches.
    """
    if not adaptive or adaptive.keys() != plain.keys():
        raise ValueError(f"{len(adaptive)} and {len(plain)} searches, which are not the same")
    moved: dict[str, list[tuple[float, float]]] = {"sparser": [], "denser": [], "same": []}
    for place, search in adaptive.items():
        middle = statistics.median(search["density"])
        for density, recall, before in zip(search["density"], search["recall"], plain[place]["recall"], strict=True):
            kind = "sparser" if density < middle else "denser" if density > middle else "same"
            moved[kind].append((before, recall))
    heads = [before for pairs in moved.values() for before, _ in pairs]
    figures = {
        "searches": float(len(adaptive)),
        f"share of heads over {RECALL_THRESHOLD}": sum(before > RECALL_THRESHOLD for before in heads) / len(heads),
        "mean recall without": statistics.fmean(heads),
        "mean recall with": statistics.fmean(recall for pairs in moved.values() for _, recall in pairs),
        "lowest recall of a search, mean, without": statistics.fmean(min(s["recall"]) for s in plain.values()),
        "lowest recall of a search, mean, with": statistics.fmean(min(s["recall"]) for s in adaptive.values()),
    }
    for kind in ("sparser", "denser"):
        if moved[kind]:
            figures[f"{kind} heads, recall without"] = statistics.fmean(before for before, _ in moved[kind])
            figures[f"{kind} heads, change"] = statistics.fmean(after - before for before, after in moved[kind])
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adaptive", type=Path)
    parser.add_argument("plain", type=Path)
    options = parser.parse_args()
    try:
        figures = compare(searches(options.adaptive), searches(options.plain))
    except ValueError as error:
        print(f"head_recall: {error}", file=sys.stderr)
        return 1
    for name, figure in figures.items():
        print(f"{name:<44}{figure:>8.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

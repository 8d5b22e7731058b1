"""What the bundled model's attention is like, and what AdaSpa costs on it: the figures of docs/tiny-model.md.

    python -m scripts.tiny_evidence patterns --out docs/results
    python -m scripts.tiny_evidence quality --out docs/results

``patterns``: recall of block, column, diagonal and diagonal+column patterns against the oracle at one sparsity, and the
recall that the mask of one step has at later steps (AdaSpa, figures 5 and 6a). ``quality``: PSNR and SSIM of AdaSpa's
videos against the dense video of the same seed (figure 9). Prompts are combinations that were never trained on.

Shapes: W [H, N, N] block sums.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaspa_cli.attention import attention_with_block_sums
from adaspa_cli.config import GenerateConfig, resolve
from adaspa_cli.files.typed_json import to_json
from adaspa_cli.hooks.clock import StepClock
from adaspa_cli.masks.recall import mask_recall
from adaspa_cli.masks.selection import select
from adaspa_cli.models.forward import Row
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.models.registry import attach, family_of
from adaspa_cli.report.machine import machine, versions
from adaspa_cli.sampling.handle import apply
from adaspa_cli.visual.patterns import line_patterns, measure
from adaspa_cli.visual.weights import HeadWeights
from scripts.judge_tiny.captions import held_out_captions

BLOCK = 64
SPARSITIES = (0.8, 0.9)


class Recorder:
    """Attends densely, and looks at the weights on the way."""

    def __init__(self, steps: int, looked_at: tuple[int, ...]) -> None:
        self.clock: StepClock | None = None
        self.steps, self.looked_at = steps, looked_at
        self.recalls: dict[tuple[float, str], list[float]] = defaultdict(list)
        self.sums: dict[int, list[Tensor]] = defaultdict(list)  # by layer, in order of the steps
        self.rows: list[Row] = []

    def __call__(self, layer: int, row: Row, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert self.clock is not None
        out, lse, sums = attention_with_block_sums(q, k, v, BLOCK)
        self.sums[layer].append(sums[0])
        self.rows = [row]
        if self.clock.step in self.looked_at:
            self._look(row, q, k, lse, sums[0])
        return out

    def _look(self, row: Row, q: Tensor, k: Tensor, lse: Tensor, sums: Tensor) -> None:
        for sparsity in SPARSITIES:
            for adaptive, name in ((False, "block"), (True, "block, head-adaptive")):
                found = select(sums, row.layout, (BLOCK, BLOCK), sparsity, head_adaptive=adaptive)
                self.recalls[sparsity, name] += found.recall.tolist()
        for head in range(q.shape[1]):
            weights = HeadWeights.of_head(q, k, lse, row.layout, head)
            masses = measure(weights)
            for sparsity in SPARSITIES:
                for name, pattern in line_patterns(weights, masses, 1 - sparsity).items():
                    self.recalls[sparsity, name].append(pattern.recall)

    def persistence(self, sparsity: float) -> list[list[float]]:
        """Recall [found at, used at] of the mask of one step on the weights of another, mean over layers and heads."""
        table = []
        for found_at in range(self.steps):
            line = [0.0] * self.steps
            for sums in self.sums.values():
                found = select(sums[found_at], self.rows[0].layout, (BLOCK, BLOCK), sparsity, head_adaptive=False)
                kept = found.mask.to_bool()
                for used_at in range(self.steps):
                    line[used_at] += float(mask_recall(kept, sums[used_at]).mean()) / len(self.sums)
            table.append([round(value, 4) for value in line])
        return table


def patterns(prompts: list[str], config: GenerateConfig) -> dict[str, Any]:
    """Recall by pattern and by distance of steps, over some prompts."""
    pipe = load_pipeline(config.model)
    steps = config.sampling.steps
    looked_at = (2, steps - 1)
    recalls: dict[tuple[float, str], list[float]] = defaultdict(list)
    tables = []
    for prompt in prompts:
        recorder = Recorder(steps, looked_at)
        recorder.clock = StepClock(pipe)
        attachment = attach(pipe, recorder)
        run(pipe, prompt, config, latent=True)
        attachment.detach()
        recorder.clock.stop()
        for key, values in recorder.recalls.items():
            recalls[key] += values
        tables.append(torch.tensor([recorder.persistence(sparsity) for sparsity in SPARSITIES]))
    mean = torch.stack(tables).mean(0)
    return {
        "steps_looked_at": looked_at,
        "recall": {
            str(sparsity): {name: round(statistics.mean(v), 4) for (s, name), v in recalls.items() if s == sparsity}
            for sparsity in SPARSITIES
        },
        "persistence": {str(s): table.tolist() for s, table in zip(SPARSITIES, mean, strict=True)},
    }


def quality(prompts: list[str], config: GenerateConfig) -> dict[str, Any]:
    """PSNR and SSIM against the dense video of the same seed, by sparsity and method."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    pipe = load_pipeline(config.model)
    searching = config.method.searching
    schedule = {"search_steps": searching.search_steps, "search_steps_for": searching.search_steps_for}
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for prompt in prompts:
        with apply(pipe, "full"):
            dense = run(pipe, prompt, config)
        for sparsity in (0.5, 0.7, 0.8, 0.9):
            for method in ("adaspa", "adaspa-no-head-adaptive"):
                with apply(pipe, method, sparsity=sparsity, **schedule) as handle:
                    video = run(pipe, prompt, config)
                shares = [1.0 if call.density is None else float(call.density.mean()) for call in handle.engine.calls]
                row = found[f"{method} {sparsity}"]
                row["psnr"].append(float(peak_signal_noise_ratio(video, dense, data_range=1.0)))
                row["ssim"].append(float(structural_similarity_index_measure(video, dense, data_range=1.0)))
                row["density"].append(statistics.mean(shares))
    return {name: {key: spread(values) for key, values in row.items()} for name, row in found.items()}


def spread(values: list[float]) -> dict[str, float]:
    """Mean, and lowest and highest quarter's border, of one figure over the prompts."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"mean": round(statistics.mean(values), 4), "q25": round(low, 4), "q75": round(high, 4)}


def run(pipe: Any, prompt: str, config: GenerateConfig, *, latent: bool = False) -> Tensor:
    """Sample one prompt with seed 0: frames [F, 3, H, W] in [0, 1]."""
    sampling = config.sampling
    with torch.inference_mode():
        video = pipe(
            prompt=prompt,
            height=sampling.height,
            width=sampling.width,
            num_frames=sampling.frames,
            num_inference_steps=sampling.steps,
            generator=torch.Generator("cpu").manual_seed(0),
            output_type="latent" if latent else "pt",
            **family_of(pipe).facts.call_arguments(sampling),
        ).frames
    return video[0].float().cpu()


def main() -> None:
    """Run one of the two, and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("patterns", "quality"))
    parser.add_argument("--prompts", type=int, default=4, help="how many held-out captions")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, help="denoising steps; the model's default")
    parser.add_argument("--search-steps", type=int, nargs="+", help="where masks are searched; the model's default")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    captions = held_out_captions()
    prompts = captions[:: len(captions) // options.prompts][: options.prompts]
    settings = {"device": options.device, "steps": options.steps, "search_steps": options.search_steps}
    settings = {name: value for name, value in settings.items() if value is not None}
    config = resolve(settings).config
    result = {"patterns": patterns, "quality": quality}[options.what](prompts, config)
    options.out.mkdir(parents=True, exist_ok=True)
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(auto if options.device == "auto" else options.device)
    record = {
        "prompts": prompts,
        "steps": config.sampling.steps,
        "search_steps": config.method.searching.schedule(config.sampling.steps),
        "versions": versions(),
        "machine": to_json(machine(device)),
        options.what: result,
    }
    path = options.out / f"tiny-{options.what}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

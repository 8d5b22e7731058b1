"""The description of a mask file: everything but its tensors, as frozen dataclasses, to JSON and back.

Nothing here needs torch: names, types and shapes of the tensors follow from the description.

Shapes: H heads, R query and C key blocks without text, K blocks of a ranked row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from adaspa_cli.attention.layout import INT16_BLOCKS, WORD_BITS, TokenLayout, ceil_div
from adaspa_cli.files.typed_json import from_json

# In the order of a model's calls. Names of pictures are made of them, so that no file may bring its own.
BRANCHES = (("cond",), ("uncond",), ("cond", "uncond"), ("uncond", "cond"))
ITEM_BYTES = {"I32": 4, "F32": 4, "I16": 2, "F16": 2}

# Fields that are younger than the format, by part of a description, and what they were in files without them.
_LATER: dict[str, dict[str, Any]] = {
    "layout": {"order": "raster", "lead_frames": 0},
    "method": {"selection": "mass", "layer_budget": False},
}

Place = tuple[int, str, int]  # layer, branch, step


@dataclass(frozen=True)
class ModelFacts:
    """Which model the masks belong to.

    Attributes:
        name: what ``--model`` was.
        pipeline: class of the pipeline in diffusers.
        random_weights: whether it had random weights, whose masks mean nothing.
        transformer: SHA-256 of the transformer's configuration (:func:`~adaspa_cli.maskfiles.check.config_hash`).
    """

    name: str
    random_weights: bool
    pipeline: str
    transformer: str


@dataclass(frozen=True)
class MethodFacts:
    """How the masks were chosen; as in :class:`~adaspa_cli.config.schema.MethodConfig`."""

    algorithm: str
    sparsity: float
    head_adaptive: bool
    lse_cache: bool
    selection: Literal["mass", "output-error"] = "mass"
    layer_budget: bool = False


@dataclass(frozen=True)
class Entry:
    """One mask: of one layer, guidance branch and search step.

    Attributes:
        density: of each head, achieved, with the text of the first prompt.
        recall: of each head, of the attention that it was searched in (averaged over prompts and seeds).
        digests: SHA-256 of each tensor's bytes, by kind.
    """

    layer: int
    branch: str
    step: int
    density: tuple[float, ...]
    recall: tuple[float, ...]
    digests: Mapping[str, str]

    @property
    def place(self) -> Place:
        return self.layer, self.branch, self.step


@dataclass(frozen=True)
class TensorSpec:
    """Type and shape of a tensor, as safetensors names them."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True)
class Description:
    """Everything about a mask file but its tensors.

    Attributes:
        layout: of the tokens, with the text of the first prompt.
        block_size: tokens of a block, query and key alike.
        layers, heads: of the transformer.
        branches: guidance branches, ``cond`` and ``uncond`` or one of them, each once.
        steps: denoising steps of the run that was searched in.
        search_steps: ascending, those that masks were searched at.
        stages: the first layer and the first step of each transformer after the first; a layer has masks of the search
            steps in its own transformer's stage.
        prompts, seeds: every prompt with every seed was searched in, and the block sums averaged.
        ranked: K, how many blocks of each row are kept in the order of their weight, for other sparsities; None if
            one sparsity alone is kept.
        keeps_sums: whether the averaged block sums are kept as well.
        settings: SHA-256 of all settings of the search, by which it knows itself again.
        versions: of adaspa and the libraries that decide numbers.
        entries: by layer, branch and step, in this order, without a gap.
    """

    model: ModelFacts
    layout: TokenLayout
    block_size: int
    layers: int
    heads: int
    branches: tuple[str, ...]
    method: MethodFacts
    steps: int
    search_steps: tuple[int, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    ranked: int | None
    keeps_sums: bool
    settings: str
    versions: Mapping[str, str]
    entries: tuple[Entry, ...] = ()
    stages: tuple[tuple[int, ...], ...] = ()

    def steps_of(self, layer: int) -> tuple[int, ...]:
        """The search steps of a layer."""
        own = sum(first_layer <= layer for first_layer, _ in self.stages)
        return tuple(s for s in self.search_steps if sum(first_step <= s for _, first_step in self.stages) == own)

    def places(self) -> Iterator[Place]:
        """Layer, branch and step of every mask that the file must hold."""
        return (
            (layer, branch, step)
            for layer in range(self.layers)
            for branch in self.branches
            for step in self.steps_of(layer)
        )

    @property
    def masks(self) -> int:
        """How many masks the file holds."""
        firsts = [0, *(first for first, _ in self.stages), self.layers]  # not layer by layer: a corrupt file has many
        of_layers = sum((end - first) * len(self.steps_of(first)) for first, end in pairwise(firsts))
        return len(self.branches) * of_layers

    @property
    def video_blocks(self) -> int:
        """R and C: blocks without text."""
        return len(self.layout.video_blocks(self.block_size))

    def kinds(self) -> dict[str, TensorSpec]:
        """The tensors of one mask."""
        heads, blocks = self.heads, self.video_blocks
        found: dict[str, TensorSpec] = {}
        if self.ranked is None:
            found["bits"] = TensorSpec("I32", (heads, blocks, ceil_div(blocks, WORD_BITS)))
        else:
            found["recall_by_rank"] = TensorSpec("F32", (heads, self.ranked + 1))
        if self.keeps_sums:
            found["text"] = TensorSpec("F32", (heads,))
        if self.ranked is not None:
            found["ranking"] = TensorSpec("I16" if blocks < INT16_BLOCKS else "I32", (heads, blocks, self.ranked))
        if self.keeps_sums:
            found["sums"] = TensorSpec("F16", (heads, blocks, blocks))
        return found

    def tensors(self) -> list[tuple[Place, str, TensorSpec]]:
        """Every tensor of the file in the order of its data.

        Wider elements come first, so that each tensor starts at a multiple of its element's size.
        """
        kinds = self.kinds()
        wide = [kind for kind, tensor in kinds.items() if ITEM_BYTES[tensor.dtype] == 4]
        narrow = [kind for kind in kinds if kind not in wide]
        return [(place, kind, kinds[kind]) for group in (wide, narrow) for place in self.places() for kind in group]

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return self.masks * sum(tensor.nbytes for tensor in self.kinds().values())

    def problem(self) -> str | None:
        """What is impossible in it, or None."""
        sizes = {"layers": self.layers, "heads": self.heads, "block_size": self.block_size, "steps": self.steps}
        sizes |= {name: getattr(self.layout, name) for name in ("frames", "height", "width")}
        for name, value in sizes.items():
            if value < 1:
                return f"{name} is {value}"
        if self.layout.text_tokens < 0:
            return f"text_tokens is {self.layout.text_tokens}"
        if not self.video_blocks:
            return "layout has no block without text"
        if self.ranked is not None and not 1 <= self.ranked <= self.video_blocks:
            return f"ranked is {self.ranked}, of {self.video_blocks} blocks"
        if not 0 <= self.method.sparsity < 1:
            return f"sparsity is {self.method.sparsity}"
        if self.branches not in BRANCHES:
            return f"branches are {list(self.branches)}"
        steps = list(self.search_steps)
        if not steps or steps != sorted(set(steps)) or not 0 <= steps[0] <= steps[-1] < self.steps:
            return f"search_steps are {steps}, of {self.steps} steps"
        stages = [(0, -1), *self.stages]  # the last step of a run may lie before the second transformer's stage
        if any(len(stage) != 2 for stage in self.stages) or not all(
            a[0] < b[0] < self.layers and a[1] < b[1] <= self.steps for a, b in pairwise(stages)
        ):
            return f"stages are {[list(stage) for stage in self.stages]}"
        return self._entries_problem()

    def _entries_problem(self) -> str | None:
        expected = self.masks
        if len(self.entries) != expected:
            return f"entries are {len(self.entries)}, not {expected}"
        kinds = set(self.kinds())
        for entry, place in zip(self.entries, self.places(), strict=True):
            if entry.place != place:
                return f"entry {place} is missing"
            if not len(entry.density) == len(entry.recall) == self.heads:
                return f"entry {place} has {len(entry.density)} densities and {len(entry.recall)} recalls"
            if not all(map(math.isfinite, (*entry.density, *entry.recall))):  # JSON may hold 1e999
                return f"entry {place} has a density or a recall that is not finite"
            if set(entry.digests) != kinds:
                return f"entry {place} holds {sorted(entry.digests)}, not {sorted(kinds)}"
        return None

    def as_json(self) -> dict[str, Any]:
        """Plain types, which :meth:`from_json` takes.

        What is younger than the format is left out where it is what it was in older files, so that they are what they
        were to the last byte.
        """
        content = dataclasses.asdict(self)
        if not self.stages:
            del content["stages"]
        for part, later in _LATER.items():
            for name, former in later.items():
                if content[part][name] == former:
                    del content[part][name]
        return content

    @classmethod
    def from_json(cls, content: Any) -> Description:
        """Rebuild a description.

        Raises:
            ValueError: a field is missing, of another type or impossible; the message names it.
        """
        description = from_json(cls, content)
        problem = description.problem()
        if problem:
            raise ValueError(problem)
        return description

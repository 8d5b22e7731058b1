"""The interface of a method: a stateless rule that says what each attention call does and how it finds its mask."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout
from adaspa_cli.attention.compensated import NO_COMPENSATION, Compensation
from adaspa_cli.attention.remainder import block_means
from adaspa_cli.distributed.heads import ALL_HEADS, Heads
from adaspa_cli.masks.order import HeadOrder
from adaspa_cli.masks.plan import CallPlan


@dataclass(frozen=True)
class Call:
    """The place of an attention call in a run.

    Attributes:
        layer: index over all attention layers of the transformer.
        step: denoising step, 0-based.
        branch: guidance branch, ``"cond"`` or ``"uncond"``.
        sample: index of the video within the branch.
        layout: the token sequence of this call.
        heads: those that the call has, where processes share a layer's. Tensors of a call are of its own heads; what
            is decided across heads asks the others through it.
    """

    layer: int
    step: int
    branch: str
    sample: int
    layout: TokenLayout
    heads: Heads = dataclasses.field(default=ALL_HEADS, compare=False, repr=False)


@dataclass(frozen=True)
class FoundMask:
    """A mask, and what is known of it.

    Attributes:
        mask: over the tokens in the order that ``order`` brings them into.
        recall: float32 [H], of the attention that the mask was found in; None where only estimates were made.
        order: the heads whose tokens are to be permuted before attention, and back after it; None if there are none.
        loaded: whether it comes from a mask file; its recall is then that of the search that made the file.
    """

    mask: BlockMask
    recall: Tensor | None
    order: HeadOrder | None = None
    loaded: bool = False


class MaskPolicy(ABC):
    """A method. It holds only settings: the run keeps its masks and LSE.

    A method implements what its plans ask for: :meth:`search` finds a mask in exact block sums, and :meth:`load`
    without the call's attention, both for later calls to reuse; :meth:`estimate` finds one in the call's own q, k and
    v, for that call alone.
    """

    @property
    @abstractmethod
    def block_size(self) -> tuple[int, int]:
        """Tokens of a (query, key) block."""

    @abstractmethod
    def decide(self, call: Call, last_search: int | None) -> CallPlan:
        """Say what a call does; ``last_search`` is the step at which its layer, branch and sample last got a mask."""

    def example(self) -> Call:
        """A call for :meth:`plan` to ask about; override it where :meth:`decide` refuses some branches or layouts."""
        return Call(0, 0, "cond", 0, TokenLayout(1, 1, 1, 0, "last"))

    @property
    def stages(self) -> tuple[int, ...]:
        """The first denoising step of each transformer after the first, where several of them share a run.

        The layers of one make no calls in the stage of another: at the end of a stage its masks are given back.
        """
        return ()

    def stage_of(self, step: int) -> int:
        """The first step of the stage that a step is in."""
        return max((first for first in self.stages if first <= step), default=0)

    def plan(self, steps: Iterable[int], layer: int = 0) -> list[CallPlan]:
        """The plans of a layer's calls at ``steps``, if none is skipped; in a later stage, of its transformer's layers.

        One thing can't be predicted: a layer whose loaded mask recalls too little searches where others load.
        """
        plans: list[CallPlan] = []
        last_search = None
        for step in steps:
            if step in self.stages:
                last_search = None
            plans.append(self.decide(dataclasses.replace(self.example(), layer=layer, step=step), last_search))
            if plans[-1].gives_mask:
                last_search = step
        return plans

    @property
    def compensation(self) -> Compensation:
        """How sparse calls compensate for the blocks that masks leave out."""
        return NO_COMPENSATION

    @property
    def max_error(self) -> float | None:
        """Attention error of a sparse call above which its layer's next call searches densely; None is no limit."""
        return None

    @property
    def search_rows(self) -> int:
        """A search reads every Nth row of a block; this is N."""
        return 1

    @property
    def scores_blocks(self) -> bool:
        """Whether :meth:`search` chooses by scores, and not only by the block sums."""
        return False

    def scores(self, block_sums: Tensor, values: Tensor) -> Tensor:
        """Scores [H, Nq, Nk] of the blocks, not negative, from W [H, Nq, Nk] and the mean values of the key blocks
        [H, Nk, D]."""
        raise NotImplementedError(f"{type(self).__name__} does not score blocks")

    def keeps_lse(self, step: int) -> bool:  # noqa: ARG002
        """Whether a search after ``step`` will need the LSE of the attention at ``step``."""
        return False

    @property
    def fresh_lse(self) -> bool:
        """Whether sparse calls replace the LSE by that of their own output, while it is kept at all."""
        return False

    def search(self, call: Call, block_sums: Tensor, scores: Tensor | None = None) -> FoundMask:
        """Choose the mask of one sample from its block sums W [H, Nq, Nk], and by their scores if it has any."""
        raise NotImplementedError(f"{type(self).__name__} does not search in block sums")

    def choose(self, call: Call, block_sums: Tensor, v: Tensor) -> FoundMask:
        """Search in block sums [1, H, Nq, Nk], by the scores that v [1, H, L, D] gives their blocks if it wants any."""
        if not self.scores_blocks:
            return self.search(call, block_sums[0])
        values = block_means(v, self.block_size[1])[0]
        return self.search(call, block_sums[0], self.scores(block_sums[0], values))

    def load(self, call: Call, device: torch.device) -> FoundMask:
        """Give the mask of one sample without its attention, for later calls to reuse."""
        raise NotImplementedError(f"{type(self).__name__} loads no masks")

    def estimate(self, call: Call, q: Tensor, k: Tensor, v: Tensor, scale: float) -> FoundMask:
        """Choose the mask of one sample from its q, k, v [1, H, L, D], without waiting for the device."""
        raise NotImplementedError(f"{type(self).__name__} does not estimate its mask")

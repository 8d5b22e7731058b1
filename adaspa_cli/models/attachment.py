"""Attaches a family's processors to the transformers of a pipeline, gives them their context, and removes them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from adaspa_cli.attention.layout import OrderName
from adaspa_cli.distributed.tokens import TokenShare
from adaspa_cli.errors import RunError
from adaspa_cli.hooks.override import Override
from adaspa_cli.models.family import Family
from adaspa_cli.models.forward import Attend, Forward, Row
from adaspa_cli.models.reordering import HilbertOrder, Rearrangement, Way


class Attachment:
    """Processors on the attention modules of a pipeline's transformers; :meth:`detach` restores what was there.

    A subclass says in :meth:`describe` what a forward pass is about. The guidance branch of a pass is what the pipeline
    calls it by ``cache_context``, and ``cond`` where it says nothing.

    Attributes:
        family: of the pipeline.
        transformers: in the order of the layers' numbers.
        blocks: of all transformers, in layer order.
        attentions: the attention module of each block.
        branch: guidance branch of the forward pass in progress.
        token_order: in which the video's tokens are attended to.
        stages: of a run of so many steps, the first step of each transformer after the first.
    """

    def __init__(self, family: Family, pipe: Any, attend: Attend, token_order: OrderName) -> None:
        """
        Args:
            family: of the pipeline.
            pipe: its transformers are called with keyword arguments, as the pipelines of diffusers do.
            attend: computes the attention of a row.
            token_order: ``raster`` leaves the video's tokens as they are.

        Raises:
            RunError: adaspa is applied already.
        """
        self.family, self.branch, self.token_order = family, "cond", token_order
        self.transformers = family.transformers(pipe)
        self.stages: Callable[[int], tuple[int, ...]] = partial(family.stages, pipe)
        self.blocks = [block for transformer in self.transformers for block in family.blocks(transformer)]
        self.attentions = [getattr(block, family.attention) for block in self.blocks]
        self._share: TokenShare | None = None  # of the video's tokens; None for all
        self._named = False  # whether the pipeline has said what the pass in progress is
        self._unnamed = 0  # passes of this step of which it has said nothing
        self._forward = Forward(attend)
        self._originals = [attention.processor for attention in self.attentions]
        self._processors = [family.processor(layer, self._forward) for layer in range(self.layers)]
        if any(type(old) is type(new) for old, new in zip(self._originals, self._processors, strict=True)):
            raise RunError("adaspa is already applied to this pipeline", hint="call remove() on the first handle")
        for attention, processor in zip(self.attentions, self._processors, strict=True):
            attention.set_processor(processor)
        self._hooks = [
            transformer.register_forward_pre_hook(self._on_forward, with_kwargs=True)
            for transformer in self.transformers
        ]
        self._overrides = [
            *(Override(transformer, "cache_context", self._note_branch) for transformer in self.transformers),
            *(Override(pipe.scheduler, name, self._note_step) for name in ("set_timesteps", "step")),
        ]
        self._rearrangements: list[list[Rearrangement]] = []  # each on all transformers
        if token_order == "hilbert":
            try:
                self.rearrange(HilbertOrder())
            except BaseException:  # the family's tokens have only one order
                self.detach()
                raise

    def describe(self, config: Any, inputs: dict[str, Any]) -> list[Row]:
        """What the rows of the batch are.

        Args:
            config: of the transformer that is called.
            inputs: its keyword arguments.
        """
        raise NotImplementedError

    def rearrange_inputs(self, inputs: dict[str, Any], rearrangement: Rearrangement) -> None:
        """Rearrange what the transformer gets for each video token, and does not compute itself."""

    def rearrange(self, way: Way) -> None:
        """Give the blocks the video's tokens in another way from now on.

        Raises:
            RunError: the family's tokens can't be rearranged.
        """
        self._rearrangements.append(
            [
                Rearrangement(self.family.ends(transformer), lambda: self.rows[0].layout, way)
                for transformer in self.transformers
            ]
        )

    def split(self, share: TokenShare) -> None:
        """Leave each process of a team its part of the video's tokens; raises as :meth:`rearrange`."""
        self.rearrange(share)
        self._share = share
        self._forward.tokens = share.tokens

    @property
    def is_split(self) -> bool:
        """Whether the video's tokens here are those of one process among several."""
        return self._share is not None

    def over_tokens(self, sums: Tensor) -> Tensor:
        """Sums over the video's tokens that are here, as sums over all of them; every process calls it."""
        return sums if self._share is None else self._share.team.sum(sums)

    def whole_video(self, x: Tensor) -> Tensor:
        """x [B, n, C] of the video's tokens that are here, of all of them [B, N, C]; every process calls it."""
        return x if self._share is None else self._share.leave(x, 1, self.rows[0].layout)

    @property
    def layers(self) -> int:
        """Number of attention layers."""
        return len(self.attentions)

    @property
    def rows(self) -> Sequence[Row]:
        """What the rows of the batch in the forward pass in progress are."""
        return self._forward.rows

    @rows.setter
    def rows(self, rows: Sequence[Row]) -> None:
        self._forward.rows = rows

    def _note_branch(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @contextlib.contextmanager
        def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
            self.branch, self._named = self.family.branch_names.get(name, name), True
            try:
                with original(name, *args, **kwargs):
                    yield
            finally:
                self.branch, self._named = "cond", False

        return cache_context

    def _note_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def next_step(*args: Any, **kwargs: Any) -> Any:
            self._unnamed = 0
            return original(*args, **kwargs)

        return next_step

    def _check_branch(self) -> None:
        """Refuse the second pass of a step where the pipeline says of none which guidance branch it is."""
        self._unnamed += not self._named
        if self._unnamed > 1:
            raise RunError(
                "the transformer is called twice in a step, without saying which call is which guidance branch",
                hint='call it within transformer.cache_context("cond") and ("uncond"), or without true guidance',
            )

    def _on_forward(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pairs = zip(self.attentions, self._processors, strict=True)
        if any(attention.processor is not processor for attention, processor in pairs):
            raise RunError(
                "the attention processors were replaced after adaspa was applied",
                hint="call fuse_qkv_projections() and the like before adaspa_cli.apply()",
            )
        if args:
            raise RunError("the transformer must be called with keyword arguments while adaspa is applied")
        self._check_branch()
        self._forward.rows = self.describe(module.config, kwargs)
        for on_first, *_ in self._rearrangements:
            self.rearrange_inputs(kwargs, on_first)

    def __deepcopy__(self, _memo: dict[int, Any]) -> Attachment:
        """A hook on a copied transformer does not take the pipeline with it."""
        return self

    def detach(self) -> None:
        """Restore every processor that is still ours, and remove hooks and overrides."""
        for hook in self._hooks:
            hook.remove()
        for rearrangement in itertools.chain.from_iterable(self._rearrangements):
            rearrangement.remove()
        for override in self._overrides:
            override.restore()
        triples = zip(self.attentions, self._processors, self._originals, strict=True)
        for attention, processor, original in triples:
            if attention.processor is processor:
                attention.set_processor(original)

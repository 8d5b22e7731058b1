"""What all adapters share: putting processors on one transformer, telling them where they are, taking them off.

A processor computes q, k and v as its model does, and hands attention over to an :class:`Attend`. It learns what
the rows of the batch are from :class:`Forward`, which a hook on the transformer fills before each forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adaspa_cli.attention import TokenLayout
from adaspa_cli.errors import RunError


@dataclass(frozen=True)
class Row:
    """One row of the batch: the guidance branch and video that it belongs to, and its token sequence."""

    branch: str
    sample: int
    layout: TokenLayout


class Attend(Protocol):
    """Attention of one row in one layer: q, k, v [1, H, L, D] without padding to output [1, H, L, D]."""

    def __call__(self, layer: int, row: Row, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


@dataclass
class Forward:
    """The forward pass in progress, and the function that attends."""

    attend: Attend
    rows: Sequence[Row] = ()

    def attend_rows(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        """Attend row by row over the real tokens of q, k, v [B, L, H, D]; padding stands last in a row.

        Conditional rows are attended first, because the others may use their masks.

        Returns:
            Per row [1, real tokens, H * D].
        """
        # A cache may leave out the unconditional rows, which come first.
        rows = self.rows[-q.shape[0] :]
        outputs = {}
        for index in sorted(range(len(rows)), key=lambda index: rows[index].branch != "cond"):
            row = rows[index]
            real = slice(0, row.layout.tokens)
            parts = (x[index : index + 1, real].transpose(1, 2) for x in (q, k, v))
            outputs[index] = self.attend(layer, row, *parts).transpose(1, 2).flatten(2)
        return [outputs[index] for index in range(len(rows))]


Processor = Callable[..., Any]


class Attachment:
    """Processors on the attention modules of one transformer instance; :meth:`detach` restores what was there.

    Attributes:
        transformer: the instance.
        blocks: its blocks in layer order; each takes and returns (video, text) tokens first.
        attentions: the attention module of each block.
    """

    def __init__(
        self,
        transformer: Any,
        blocks: Sequence[Any],
        attention_name: str,
        forward: Forward,
        make_processor: Callable[[int], Processor],
        before_forward: Callable[[dict[str, Any]], None],
    ) -> None:
        """
        Args:
            transformer: called with keyword arguments, as the pipelines of diffusers do.
            blocks: its blocks in layer order.
            attention_name: attribute of a block that is its attention module.
            forward: the forward pass in progress, shared with the processors.
            make_processor: the processor of a layer.
            before_forward: gets the keyword arguments of each forward pass.
        """
        self.transformer, self.blocks = transformer, list(blocks)
        self.attentions = [getattr(block, attention_name) for block in self.blocks]
        self._forward = forward
        self._originals = [attention.processor for attention in self.attentions]
        self._processors = [make_processor(layer) for layer in range(len(self.attentions))]
        self._before_forward = before_forward
        if any(type(old) is type(new) for old, new in zip(self._originals, self._processors, strict=True)):
            raise RunError("adaspa is already applied to this pipeline", hint="remove() the first handle before")
        for attention, processor in zip(self.attentions, self._processors, strict=True):
            attention.set_processor(processor)
        self._hook = transformer.register_forward_pre_hook(self._on_forward, with_kwargs=True)

    @property
    def layers(self) -> int:
        """Number of attention layers."""
        return len(self.attentions)

    @property
    def rows(self) -> Sequence[Row]:
        """What the rows of the batch in the forward pass in progress are."""
        return self._forward.rows

    def _on_forward(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pairs = zip(self.attentions, self._processors, strict=True)
        if any(attention.processor is not processor for attention, processor in pairs):
            raise RunError(
                "the attention processors were replaced after adaspa was applied",
                hint="call fuse_qkv_projections() and the like before adaspa_cli.apply()",
            )
        if args:
            raise RunError("the transformer must be called with keyword arguments while adaspa is applied")
        self._before_forward(kwargs)

    def detach(self) -> None:
        """Restore every processor that is still ours, and remove the hook."""
        self._hook.remove()
        triples = zip(self.attentions, self._processors, self._originals, strict=True)
        for attention, processor, original in triples:
            if attention.processor is processor:
                attention.set_processor(original)


def join(rows: Sequence[Tensor]) -> Tensor:
    """Rows [1, n, C] to a batch [B, n, C]; a batch of one is not copied.

    Such a batch gets the strides that its shape has when it is no part of a longer row: a compiled block looks at them,
    and would be compiled anew for each length of text.
    """
    return rows[0].squeeze(0).unsqueeze(0) if len(rows) == 1 else torch.cat(list(rows))


def pad_tokens(x: Tensor, tokens: int) -> Tensor:
    """Fill x [1, n, C] with zeros to [1, tokens, C]: the output of padded text."""
    return x if x.shape[1] == tokens else torch.nn.functional.pad(x, (0, 0, 0, tokens - x.shape[1]))

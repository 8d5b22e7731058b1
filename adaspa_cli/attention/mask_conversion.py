"""Conversion between a block mask's lists, bools and bits: by Triton kernels on a GPU, in PyTorch elsewhere.

Bits are int32 words: key block j is bit j % 32, from the lowest, of word j // 32, and the bits past the last key block
are zero. On a little-endian machine ``words.view(torch.uint8)`` is what numpy's ``packbits(..., bitorder="little")``
gives, filled up to whole words.

Shapes: ``*`` any leading dimensions, Nk key blocks, K the width of the index lists, S = ceil(Nk / 32) words.
"""

import functools
import logging

import torch
from torch import Tensor

from adaspa_cli.attention.layout import WORD_BITS, ceil_div

_logger = logging.getLogger(__name__)


def allowed(task: str, reason: str | None) -> bool:
    """Whether kernels can do a task on a GPU; if not, the reason is logged once."""
    if reason is None:
        return True
    _say_fallback(task, reason)
    return False


@functools.cache
def _say_fallback(task: str, reason: str) -> None:
    _logger.warning("%s runs in PyTorch, which is slower, because its kernels cannot run: %s", task, reason)


def kernels_convert(device: torch.device) -> bool:
    """Whether the kernels convert masks on this device: on a GPU, unless it cannot run them."""
    if device.type != "cuda":
        return False
    import adaspa_kernels

    return allowed("mask conversion", adaspa_kernels.unavailable(device))


def to_flags(counts: Tensor, indices: Tensor, key_blocks: int, *, words: bool) -> Tensor:
    """Lists, counts [*] and indices [*, K], to bool [*, Nk], or to words [*, S]."""
    if kernels_convert(counts.device):
        import adaspa_kernels

        counts_row, indices_row = counts.reshape(-1).contiguous(), indices.reshape(-1, indices.shape[-1]).contiguous()
        flags: Tensor = adaspa_kernels.flag_lists(counts_row, indices_row, key_blocks, words=words)
        return flags.view(*counts.shape, flags.shape[-1])
    dense = _dense(counts, indices, key_blocks)
    return pack_words(dense) if words else dense


def to_lists(flags: Tensor, key_blocks: int, width: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Bool [*, Nk] or words [*, S] to lists, counts [*] and indices [*, K] of ``dtype``.

    Full rows have no list. Without a width this synchronises once, to learn the longest list; with one that is too
    small the CPU raises ValueError and a GPU asserts on the device, so that nothing has to be waited for.
    """
    if width is not None and width < 1:
        raise ValueError(f"width must be 1 or more, got {width}")
    kernels = kernels_convert(flags.device)
    if kernels:
        import adaspa_kernels

        rows = flags.reshape(flags.shape[:-1].numel(), flags.shape[-1]).contiguous()
        counts = adaspa_kernels.count_flags(rows, key_blocks)
    else:
        rows = flags if flags.dtype == torch.bool else unpack_words(flags, key_blocks)
        counts = rows.sum(-1, dtype=torch.int32)
    width = _width(torch.where(counts == key_blocks, 0, counts), width)
    if kernels:
        indices = adaspa_kernels.list_flags(rows, counts, key_blocks, width, dtype)
        return counts.view(flags.shape[:-1]), indices.view(*flags.shape[:-1], width)
    return counts, _listed(rows, counts, key_blocks, width).to(dtype)


def _width(listed: Tensor, width: int | None) -> int:
    """Length of the longest list, at least 1; or the given one, if no list is longer."""
    if listed.numel() == 0:
        return width or 1
    if width is None:
        return max(1, int(listed.max()))
    if listed.device.type != "cpu":
        torch._assert_async((listed <= width).all(), f"a row keeps more than {width} blocks")
    elif (longest := int(listed.max())) > width:
        raise ValueError(f"a row keeps {longest} blocks, but the width is {width}")
    return width


def _dense(counts: Tensor, indices: Tensor, key_blocks: int) -> Tensor:
    slots = torch.arange(indices.shape[-1], device=counts.device)
    full = (counts == key_blocks)[..., None]
    listed = (slots < counts[..., None]) & ~full
    # One extra column swallows the unused slots, so that they need no branch.
    columns = torch.where(listed, indices.long(), key_blocks)
    dense = torch.zeros(*counts.shape, key_blocks + 1, dtype=torch.bool, device=counts.device)
    dense.scatter_(-1, columns, True)
    return dense[..., :-1] | full


def _listed(dense: Tensor, counts: Tensor, key_blocks: int, width: int) -> Tensor:
    """Indices, int64 [*, width], of bool [*, Nk]; zero past the count, and in full rows."""
    kept_first = torch.argsort((~dense).to(torch.uint8), dim=-1, stable=True)[..., :width]
    slots = torch.arange(kept_first.shape[-1], device=dense.device)
    listed = (slots < counts[..., None]) & (counts != key_blocks)[..., None]
    indices = torch.where(listed, kept_first, 0)
    return torch.nn.functional.pad(indices, (0, width - indices.shape[-1]))


def pack_words(dense: Tensor) -> Tensor:
    """Bool [*, Nk] to words, int32 [*, S]."""
    count = ceil_div(dense.shape[-1], WORD_BITS)
    padded = torch.nn.functional.pad(dense, (0, count * WORD_BITS - dense.shape[-1]))
    by_word = padded.view(*dense.shape[:-1], count, WORD_BITS)
    words = torch.zeros(by_word.shape[:-1], dtype=torch.int32, device=dense.device)
    for bit in range(WORD_BITS):  # one at a time: all at once would take 32 times the memory of the words
        words |= by_word[..., bit].to(torch.int32) << bit
    return words


def unpack_words(words: Tensor, key_blocks: int) -> Tensor:
    """Words, int32 [*, S], to bool [*, Nk]."""
    dense = torch.empty(*words.shape, WORD_BITS, dtype=torch.bool, device=words.device)
    for bit in range(WORD_BITS):
        dense[..., bit] = (words >> bit) & 1 != 0
    return dense.flatten(-2)[..., :key_blocks]

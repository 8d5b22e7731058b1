"""The operators on a CPU in plain PyTorch. Blocks that are left out are neither read nor multiplied.

Two ways to a softmax, chosen by dtype alone. Measured on two Zen 4 cores with AVX512-BF16, 5,184 tokens, 4 heads of 64,
one thread, CPU time of a dense pass:

- *flash*, PyTorch's fused kernel: 0.41 s in float32, 0.45 s in bfloat16;
- *products*: a matrix product, softmax by ``exp2`` (3.5 times faster than ``exp`` here) in float32, a second product:
  0.45 s in float32, 0.29 s in bfloat16, because its products run in bfloat16 throughout.

So bfloat16 takes products and everything else flash. The search needs the weights themselves: always products.
Products in bfloat16 round the scores to bfloat16, as ``q @ k.mT`` does; sums and exponentials are float32.

Shapes: B batch, H heads, Lq and Lk tokens, D head dimension, Nq and Nk blocks, BQ and BK tokens of a block; here a
*row* is one query block of one head, R = B * H * Nq rows; n rows (or chunks) at a time, M queries on S keys each.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.layout import ceil_div

LOG2_E = math.log2(math.e)

# Bytes per thread of gathered keys and values or of scores: what one core's second-level cache holds.
_GROUP_BYTES = 1 << 20
# Scores of one dense chunk. Larger than the cache: each chunk reads all keys anew, which then costs less.
_CHUNK_SCORES = 1 << 20


class _Scratch:
    """Buffers for scores, reused by all chunks of a call: fresh pages cost more than the arithmetic on them."""

    def __init__(self, scores: int, dtype: torch.dtype) -> None:
        self._wide = torch.empty(scores)
        self._narrow = None if dtype == torch.float32 else torch.empty(scores, dtype=dtype)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """q k^T without the scale, in float32: [n, M, D] and [n, S, D] to [n, M, S]."""
        shape = (q.shape[0], q.shape[1], k.shape[1])
        wide = self._wide[: math.prod(shape)].view(shape)
        if self._narrow is None:
            return _multiply(q, k.mT, wide)
        narrow = self._narrow[: math.prod(shape)].view(shape)
        return wide.copy_(_multiply(q, k.mT, narrow))

    def weigh(self, weights: Tensor, v: Tensor, out: Tensor) -> Tensor:
        """Write ``weights`` v to ``out`` in v's dtype: [n, M, S] and [n, S, D] to [n, M, D]."""
        if self._narrow is not None:
            weights = self._narrow[: weights.numel()].view(weights.shape).copy_(weights)
        return _multiply(weights, v, out)


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """[n, M, K] x [n, K, N] into ``out``. A batch of one is no batch: 1.4 times faster in bfloat16 (q k^T)."""
    if len(a) == 1:
        torch.mm(a[0], b[0], out=out[0])
        return out
    return torch.bmm(a, b, out=out)


@torch.no_grad()
def dense_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Full attention: output [B, H, Lq, D] ([B, Lq, H, D] in memory) and LSE float32 [B, H, Lq]."""
    _check_scale(scale)
    if not _uses_products(q.dtype):
        out, lse = _flash(q, k, v, scale)
        return _token_major(out), lse
    queries, keys, values = _flat(q, 1), _flat(k, 1), _flat(v, 1)
    out, lse = torch.empty_like(queries), torch.empty(queries.shape[:2])
    _dense_products(queries, keys, values, scale, out, lse)
    return _token_major(out.view(q.shape)), lse.view(q.shape[:3])


@torch.no_grad()
def block_sparse_attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float) -> tuple[Tensor, Tensor]:
    """Attention over kept blocks: output [B, H, Lq, D] ([B, Lq, H, D] in memory) and LSE float32 [B, H, Lq].

    Rows that keep the same number of keys share batched products on gathered copies of their blocks; full rows are
    a dense product on all keys of their head; empty rows give zeros and -inf.
    """
    _check_scale(scale)
    batch, heads, tokens, head_dim = q.shape
    block_q, block_k = mask.block_size
    queries = _flat(q, block_q)
    keys, values = _flat(k, block_k), _flat(v, block_k)
    rows = queries.view(-1, block_q, head_dim)
    out, lse = torch.zeros_like(rows), torch.full(rows.shape[:2], -torch.inf)

    counts = mask.counts.expand(batch, heads, -1).reshape(-1)
    indices = mask.indices.expand(batch, heads, -1, -1).flatten(0, -2)
    full = counts == mask.key_blocks
    for head in range(batch * heads):
        dense = full.view(batch * heads, -1)[head].nonzero()[:, 0] + head * mask.query_blocks
        if len(dense):
            _full_rows(rows, dense, keys[head, : k.shape[2]], values[head, : k.shape[2]], scale, out, lse)

    padding = mask.key_blocks * block_k - k.shape[2]
    # Lists ascend, so the ragged block is a row's last and its padding the tail of the gathered keys: cut, not masked.
    last = indices.gather(1, (counts[:, None] - 1).clamp(0, indices.shape[1] - 1).long())[:, 0]
    kept_tokens = counts * block_k - padding * (last == mask.key_blocks - 1)
    kept_tokens = torch.where(full | (counts == 0), 0, kept_tokens)
    for length in sorted(set(kept_tokens.tolist())):
        if length:
            alike = (kept_tokens == length).nonzero()[:, 0]
            _listed_rows(rows, alike, indices, keys, values, (mask.key_blocks, block_k, length), scale, out, lse)

    out = out.view(batch, heads, -1, head_dim)[:, :, :tokens]
    return _token_major(out), lse.view(batch, heads, -1)[:, :, :tokens].contiguous()


@torch.no_grad()
def block_sums(q: Tensor, k: Tensor, lse: Tensor, block_size: tuple[int, int], scale: float) -> Tensor:
    """Exact block sums W of exp(q k^T * scale - LSE), float32 [B, H, Nq, Nk] (AdaSpa, precise online search).

    Holds one chunk of scores: max(2**20, BQ * Lk) elements of 4 bytes (6 in 16 bits), and padded copies of q and k.
    """
    _check_scale(scale)
    block_q, block_k = block_size
    queries, keys = _flat(q, block_q), _flat(k, block_k)
    key_blocks = keys.shape[1] // block_k
    sums = torch.empty(len(queries), queries.shape[1] // block_q, key_blocks)
    # +inf makes a row weigh nothing, be it past the end or without keys.
    shift = F.pad(lse.float() * LOG2_E, (0, queries.shape[1] - q.shape[2]), value=torch.inf)
    shift = torch.where(shift == -torch.inf, torch.inf, shift).view(len(queries), -1, 1)
    scratch = _dense_scratch(queries, keys, block_q)
    for head, start, stop in _chunks(queries, keys, block_q):
        weights = scratch.scores(queries[head, start:stop][None], keys[head][None])
        weights[..., k.shape[2] :] = -torch.inf
        torch.add(-shift[head, start:stop], weights, alpha=scale * LOG2_E, out=weights).exp2_()
        columns = weights.view(-1, block_q, keys.shape[1]).sum(1)
        sums[head, start // block_q : stop // block_q] = columns.view(-1, key_blocks, block_k).sum(-1)
    return sums.view(*q.shape[:2], -1, key_blocks)


@torch.no_grad()
def attention_with_block_sums(
    q: Tensor, k: Tensor, v: Tensor, block_size: tuple[int, int], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Fused online search in one pass: the weights of a chunk of queries serve the output, the LSE and W.

    Shapes as in :func:`dense_attention` and :func:`block_sums`; holds one chunk of scores as the latter does, and
    padded copies of q, k, v and the output.
    """
    _check_scale(scale)
    block_q, block_k = block_size
    queries, keys, values = _flat(q, block_q), _flat(k, block_k), _flat(v, block_k)
    key_blocks = keys.shape[1] // block_k
    out, lse = torch.empty_like(queries), torch.empty(queries.shape[:2])
    sums = torch.empty(len(queries), queries.shape[1] // block_q, key_blocks)
    scratch = _dense_scratch(queries, keys, block_q)
    for head, start, stop in _chunks(queries, keys, block_q):
        weights, shift = _weights(scratch, queries[head, start:stop][None], keys[head][None], k.shape[2], scale)
        per_block = weights.view(stop - start, key_blocks, block_k).sum(-1)
        total = per_block.sum(-1, keepdim=True)
        chunk = scratch.weigh(weights, values[head][None], out[head, start:stop][None])
        chunk.div_(total)
        lse[head, start:stop] = ((shift[0] + total.log2()) / LOG2_E)[:, 0]
        per_block.div_(total)
        per_block[q.shape[2] - start :] = 0  # queries past the end
        sums[head, start // block_q : stop // block_q] = per_block.view(-1, block_q, key_blocks).sum(1)
    out = out.view(*q.shape[:2], -1, q.shape[3])[:, :, : q.shape[2]]
    lse = lse.view(*q.shape[:2], -1)[:, :, : q.shape[2]].contiguous()
    return _token_major(out), lse, sums.view(*q.shape[:2], -1, key_blocks)


def _uses_products(dtype: torch.dtype) -> bool:
    """The measured rule of the module's docstring."""
    return dtype == torch.bfloat16


def _check_scale(scale: float) -> None:
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")


def _flat(x: Tensor, block: int) -> Tensor:
    """[B, H, L, D] to contiguous [B * H, whole blocks, D], zeros after the end."""
    padding = ceil_div(x.shape[2], block) * block - x.shape[2]
    padded = F.pad(x, (0, 0, 0, padding)) if padding else x
    return padded.contiguous().flatten(0, 1)


def _token_major(out: Tensor) -> Tensor:
    """[B, H, L, D] laid out as [B, L, H, D], which models flatten."""
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """PyTorch's fused kernel, called below SDPA because SDPA does not return the LSE: [.., M, D] and [.., M]."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    return out, lse.float()


def _weights(scratch: _Scratch, q: Tensor, k: Tensor, keys: int, scale: float) -> tuple[Tensor, Tensor]:
    """2**(s - shift), s = q k^T * scale * log2(e), shift its row maximum: [n, M, S] and [n, M, 1].

    Only the first ``keys`` of the S keys count; scale > 0, so the maximum may be taken before it is applied.
    """
    scores = scratch.scores(q, k)
    scores[..., keys:] = -torch.inf
    shift = scores.amax(-1, keepdim=True).mul_(scale * LOG2_E)
    return torch.add(-shift, scores, alpha=scale * LOG2_E, out=scores).exp2_(), shift


def _attend(scratch: _Scratch, q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> Tensor:
    """Write softmax(q k^T * scale) v to ``out`` [n, M, D]; return the LSE [n, M]."""
    weights, shift = _weights(scratch, q, k, k.shape[1], scale)
    total = weights.sum(-1, keepdim=True)
    scratch.weigh(weights, v, out).div_(total)
    return ((shift + total.log2_()) / LOG2_E)[..., 0]


def _chunks(queries: Tensor, keys: Tensor, block_q: int) -> Iterator[tuple[int, int, int]]:
    """(head, start, stop): whole query blocks of [B * H, Lq, D], within ``_CHUNK_SCORES`` or one block."""
    step = _chunk_rows(keys.shape[1], block_q)
    for head in range(queries.shape[0]):
        for start in range(0, queries.shape[1], step):
            yield head, start, min(start + step, queries.shape[1])


def _chunk_rows(keys: int, block_q: int) -> int:
    return max(1, _CHUNK_SCORES // (keys * block_q)) * block_q


def _dense_scratch(queries: Tensor, keys: Tensor, block_q: int) -> _Scratch:
    rows = min(_chunk_rows(keys.shape[1], block_q), queries.shape[1])
    return _Scratch(rows * keys.shape[1], queries.dtype)


def _dense_products(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, lse: Tensor) -> None:
    """Full attention of [B * H, L, D] by products, into ``out`` and ``lse`` [B * H, Lq]."""
    scratch = _dense_scratch(q, k, 64)
    for head, start, stop in _chunks(q, k, 64):
        rows = slice(start, stop)
        lse[head, rows] = _attend(
            scratch, q[head, rows][None], k[head][None], v[head][None], scale, out[head, rows][None]
        )[0]


def _full_rows(rows: Tensor, chosen: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, lse: Tensor) -> None:
    """Attend from the ``chosen`` rows of one head to all its keys [S, D]."""
    q = rows[chosen].flatten(0, 1)
    if _uses_products(q.dtype):
        result, row_lse = torch.empty_like(q), torch.empty(len(q))
        _dense_products(q[None], k[None], v[None], scale, result[None], row_lse[None])
    else:
        result, row_lse = (x[0, 0] for x in _flash(q[None, None], k[None, None], v[None, None], scale))
    out[chosen] = result.view(len(chosen), *out.shape[1:])
    lse[chosen] = row_lse.view(len(chosen), -1)


def _listed_rows(
    rows: Tensor,
    chosen: Tensor,
    indices: Tensor,
    keys: Tensor,
    values: Tensor,
    extent: tuple[int, int, int],
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Attend from the ``chosen`` rows to their listed blocks; ``extent`` is Nk, BK and the tokens each row keeps."""
    key_blocks, block_k, length = extent
    width = ceil_div(length, block_k)
    block_q, head_dim = rows.shape[1:]
    row_blocks = len(rows) // len(keys)  # Nq
    group = _group_size(length, block_q, head_dim, rows.element_size(), len(chosen))
    keys, values = (x.view(-1, block_k * head_dim) for x in (keys, values))
    listed = indices[chosen, :width].long() + (chosen // row_blocks * key_blocks)[:, None]
    buffers = rows.new_empty(2, group * width, block_k * head_dim)
    scratch = _Scratch(group * block_q * length, rows.dtype) if _uses_products(rows.dtype) else None
    for start in range(0, len(chosen), group):
        members, flat = chosen[start : start + group], listed[start : start + group].flatten()
        gathered = []
        for source, buffer in zip((keys, values), buffers, strict=True):
            torch.index_select(source, 0, flat, out=buffer[: len(flat)])
            gathered.append(buffer[: len(flat)].view(len(members), width * block_k, head_dim)[:, :length])
        q = rows[members]
        if scratch is None:
            result, group_lse = (x[:, 0] for x in _flash(q[:, None], gathered[0][:, None], gathered[1][:, None], scale))
        else:
            result = torch.empty_like(q)
            group_lse = _attend(scratch, q, gathered[0], gathered[1], scale, result)
        out[members] = result
        lse[members] = group_lse


def _group_size(length: int, block_q: int, head_dim: int, item_size: int, rows: int) -> int:
    """Rows per batched product: 4 in float32 and 8 in 16 bits for 1,024 kept keys, D = 64 and two threads."""
    per_row = length * max(block_q, 2 * head_dim) * item_size
    return min(rows, max(1, _GROUP_BYTES * torch.get_num_threads() // per_row))

"""The operators on a CPU in plain PyTorch. Blocks that are left out are neither read nor multiplied.

Two ways to a softmax, chosen by dtype alone. A dense pass over 9,216 tokens, 4 heads of 64, on two Zen 4 cores with
AVX512-BF16 (scripts/bench_cpu_attention.py):

- *flash*, PyTorch's fused kernel: 0.58 s in float32, 0.56 s in bfloat16;
- *products*: a matrix product, softmax by ``exp2`` (3.5 times faster than ``exp`` here) in float32, a second product:
  0.42 s in bfloat16, because its products run in bfloat16 throughout, and 1.09 s in float32 (with block sums).

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

# Bytes per thread of gathered keys and values or of scores: what a group leaves in the caches between its products.
_GROUP_BYTES = 2_000_000
# Scores of one dense chunk. Larger than the cache: each chunk reads all keys again, which then costs less.
_CHUNK_SCORES = 1 << 21
# Scores that fill whole cache lines: rows of another length are up to half as slow to convert.
_ALIGNED = 32


class _Softmax:
    """Scores and their softmax in buffers that all chunks of a call reuse: fresh pages cost more than arithmetic."""

    def __init__(self, like: Tensor, scale: float) -> None:
        self._factor = scale * LOG2_E
        self._wide, self._narrow = _empty(like, 0), like.new_empty(0)

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        """q k^T without the scale, in float32: [n, M, D] and [n, S, D] to [n, M, S]."""
        shape = (q.shape[0], q.shape[1], k.shape[1])
        size = math.prod(shape)
        if size > len(self._narrow):
            self._narrow = q.new_empty(size)
            self._wide = self._narrow if q.dtype == torch.float32 else _empty(q, size)
        scores = _multiply(q, k.mT, self._narrow[:size].view(shape))
        return scores if q.dtype == torch.float32 else self._wide[:size].view(shape).copy_(scores)

    def exponentials(self, q: Tensor, k: Tensor, keys: int, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """2**(s - shift), s = q k^T * scale * log2(e): [n, M, S], and the shift [n, M, 1], by default the row maximum.

        Only the first ``keys`` of the S keys count; scale > 0, so the maximum may be taken before it is applied.
        """
        scores = self._scores(q, k)
        scores[..., keys:] = -torch.inf
        if shift is None:
            shift = scores.amax(-1, keepdim=True).mul_(self._factor)
        return torch.add(-shift, scores, alpha=self._factor, out=scores).exp2_(), shift

    def weigh(self, weights: Tensor, v: Tensor, out: Tensor) -> Tensor:
        """Write ``weights`` v to ``out`` in v's dtype: [n, M, S] and [n, S, D] to [n, M, D]."""
        if v.dtype != torch.float32:
            weights = self._narrow[: weights.numel()].view(weights.shape).copy_(weights)
        return _multiply(weights, v, out)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: int, out: Tensor) -> Tensor:
        """Write softmax(q k^T * scale) v over the first ``keys`` keys to ``out`` [n, M, D]; return the LSE [n, M]."""
        weights, shift = self.exponentials(q, k, keys)
        total = weights.sum(-1, keepdim=True)
        self.weigh(weights, v, out).div_(total)
        return ((shift + total.log2_()) / LOG2_E)[..., 0]


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
    if not uses_products(q.dtype):
        out, lse = _flash(q, k, v, scale)
        return _token_major(out), lse
    queries, keys, values = _flat(q, 1), _flat(k, _ALIGNED), _flat(v, _ALIGNED)
    out, lse = torch.empty_like(queries), _empty(queries, *queries.shape[:2])
    softmax = _Softmax(q, scale)
    for head in range(len(queries)):
        _dense_products(softmax, queries[head], keys[head], values[head], k.shape[2], out[head], lse[head])
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
    out, lse = torch.zeros_like(rows), _empty(rows, *rows.shape[:2]).fill_(-torch.inf)
    softmax = _Softmax(q, scale) if uses_products(q.dtype) else None

    counts = mask.counts.expand(batch, heads, -1).reshape(-1)
    indices = mask.indices.expand(batch, heads, -1, -1).flatten(0, -2)
    full = counts == mask.key_blocks
    for head in full.view(batch * heads, -1).any(-1).nonzero()[:, 0].tolist():
        dense = full.view(batch * heads, -1)[head].nonzero()[:, 0] + head * mask.query_blocks
        _full_rows(softmax, rows, dense, keys[head], values[head], k.shape[2], scale, out, lse)

    padding = mask.key_blocks * block_k - k.shape[2]
    # Lists ascend, so the ragged block is a row's last and its padding the tail of the gathered keys.
    last = indices.gather(1, (counts[:, None] - 1).clamp(0, indices.shape[1] - 1).long())[:, 0]
    kept_tokens = counts * block_k - padding * (last == mask.key_blocks - 1)
    kept_tokens = torch.where(full | (counts == 0), 0, kept_tokens)
    for length in sorted(set(kept_tokens.tolist())):
        if length:
            alike = (kept_tokens == length).nonzero()[:, 0]
            extent = mask.key_blocks, block_k, length
            _listed_rows(softmax, rows, alike, indices, keys, values, extent, scale, out, lse)

    out = out.view(batch, heads, -1, head_dim)[:, :, :tokens]
    return _token_major(out), lse.view(batch, heads, -1)[:, :, :tokens].contiguous()


@torch.no_grad()
def block_sums(
    q: Tensor, k: Tensor, lse: Tensor, block_size: tuple[int, int], scale: float, row_stride: int = 1
) -> Tensor:
    """Block sums of every ``row_stride``-th row of a query block, scaled to all of its rows.

    Holds what :func:`_exact_block_sums` does for so many rows.
    """
    sums = _exact_block_sums(
        q[:, :, ::row_stride], k, lse[:, :, ::row_stride], (block_size[0] // row_stride, block_size[1]), scale
    )
    if row_stride > 1:
        real = torch.full((sums.shape[2], 1), block_size[0], dtype=torch.float32, device=q.device)
        real[-1] -= sums.shape[2] * block_size[0] - q.shape[2]
        sums *= real / -(-real // row_stride)
    return sums


def _exact_block_sums(q: Tensor, k: Tensor, lse: Tensor, block_size: tuple[int, int], scale: float) -> Tensor:
    """Exact block sums W of exp(q k^T * scale - LSE), float32 [B, H, Nq, Nk] (AdaSpa, precise online search).

    Holds one chunk of scores: max(2**21, BQ * Lk) elements of 4 bytes (6 in 16 bits), and padded copies of q and k.
    """
    _check_scale(scale)
    block_q, block_k = block_size
    queries, keys = _flat(q, block_q), _flat(k, block_k)
    key_blocks = keys.shape[1] // block_k
    sums = _empty(queries, len(queries), queries.shape[1] // block_q, key_blocks)
    # +inf gives a row no weight: it is past the end, or has no keys.
    shift = F.pad(lse.float() * LOG2_E, (0, queries.shape[1] - q.shape[2]), value=torch.inf)
    shift = torch.where(shift == -torch.inf, torch.inf, shift).view(len(queries), -1, 1)
    softmax = _Softmax(q, scale)
    for head, start, stop in _chunks(queries, keys, block_q):
        rows = slice(start, stop)
        weights, _ = softmax.exponentials(
            queries[None, head, rows], keys[None, head], k.shape[2], shift[None, head, rows]
        )
        # Keys first: four times faster than the rows of a block first.
        per_block = weights.view(stop - start, key_blocks, block_k).sum(-1)
        sums[head, start // block_q : stop // block_q] = per_block.view(-1, block_q, key_blocks).sum(1)
    return sums.view(*q.shape[:2], -1, key_blocks)


@torch.no_grad()
def attention_with_block_sums(
    q: Tensor, k: Tensor, v: Tensor, block_size: tuple[int, int], scale: float, row_stride: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Fused online search: two passes with a row stride, one without."""
    if row_stride > 1:
        out, lse = dense_attention(q, k, v, scale)
        return out, lse, block_sums(q, k, lse, block_size, scale, row_stride)
    return _fused_search(q, k, v, block_size, scale)


def _fused_search(
    q: Tensor, k: Tensor, v: Tensor, block_size: tuple[int, int], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Search in one pass: the weights of a chunk of queries serve the output, the LSE and W.

    Shapes as in :func:`dense_attention` and :func:`block_sums`; holds one chunk of scores as the latter does, and
    padded copies of q, k, v and the output.
    """
    _check_scale(scale)
    block_q, block_k = block_size
    queries, keys, values = _flat(q, block_q), _flat(k, block_k), _flat(v, block_k)
    key_blocks = keys.shape[1] // block_k
    out, lse = torch.empty_like(queries), _empty(queries, *queries.shape[:2])
    sums = _empty(queries, len(queries), queries.shape[1] // block_q, key_blocks)
    softmax = _Softmax(q, scale)
    for head, start, stop in _chunks(queries, keys, block_q):
        weights, shift = softmax.exponentials(queries[None, head, start:stop], keys[None, head], k.shape[2])
        per_block = weights.view(stop - start, key_blocks, block_k).sum(-1)
        total = per_block.sum(-1, keepdim=True)
        chunk = softmax.weigh(weights, values[head][None], out[head, start:stop][None])
        chunk.div_(total)
        lse[head, start:stop] = ((shift[0] + total.log2()) / LOG2_E)[:, 0]
        per_block.div_(total)
        per_block[q.shape[2] - start :] = 0  # queries past the end
        sums[head, start // block_q : stop // block_q] = per_block.view(-1, block_q, key_blocks).sum(1)
    out = out.view(*q.shape[:2], -1, q.shape[3])[:, :, : q.shape[2]]
    lse = lse.view(*q.shape[:2], -1)[:, :, : q.shape[2]].contiguous()
    return _token_major(out), lse, sums.view(*q.shape[:2], -1, key_blocks)


def _empty(like: Tensor, *shape: int) -> Tensor:
    """A float32 buffer where ``like`` is, whatever torch's defaults are."""
    return like.new_empty(shape, dtype=torch.float32)


def uses_products(dtype: torch.dtype) -> bool:
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


def _chunks(queries: Tensor, keys: Tensor, block_q: int) -> Iterator[tuple[int, int, int]]:
    """(head, start, stop): whole query blocks of [B * H, Lq, D], within ``_CHUNK_SCORES`` or one block."""
    step = max(1, _CHUNK_SCORES // (keys.shape[1] * block_q)) * block_q
    for head in range(queries.shape[0]):
        for start in range(0, queries.shape[1], step):
            yield head, start, min(start + step, queries.shape[1])


def _dense_products(softmax: _Softmax, q: Tensor, k: Tensor, v: Tensor, tokens: int, out: Tensor, lse: Tensor) -> None:
    """Attend from q [Lq, D] to the first ``tokens`` of k and v [S, D], into ``out`` [Lq, D] and ``lse`` [Lq]."""
    for _, start, stop in _chunks(q[None], k[None], 64):
        lse[start:stop] = softmax.attend(q[None, start:stop], k[None], v[None], tokens, out[None, start:stop])[0]


def _full_rows(
    softmax: _Softmax | None,
    rows: Tensor,
    chosen: Tensor,
    k: Tensor,
    v: Tensor,
    tokens: int,
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Attend from the ``chosen`` rows of one head to the first ``tokens`` of its keys [S, D]."""
    q = rows[chosen].flatten(0, 1)
    if softmax is None:
        keys, values = k[None, None, :tokens], v[None, None, :tokens]
        result, row_lse = (x[0, 0] for x in _flash(q[None, None], keys, values, scale))
    else:
        result, row_lse = torch.empty_like(q), _empty(q, len(q))
        _dense_products(softmax, q, k, v, tokens, result, row_lse)
    out[chosen] = result.view(len(chosen), *out.shape[1:])
    lse[chosen] = row_lse.view(len(chosen), -1)


def _listed_rows(
    softmax: _Softmax | None,
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
    for start in range(0, len(chosen), group):
        flat = listed[start : start + group].flatten()
        members = _span(chosen[start : start + group])
        q = rows[members]
        for source, buffer in zip((keys, values), buffers, strict=True):
            torch.index_select(source, 0, flat, out=buffer[: len(flat)])
        # Whole blocks, the ragged one as well: bmm would copy what is cut.
        k, v = buffers[:, : len(flat)].view(2, len(q), width * block_k, head_dim)
        if softmax is None:
            k, v = k[:, None, :length], v[:, None, :length]
            out[members], lse[members] = (x[:, 0] for x in _flash(q[:, None], k, v, scale))
        else:
            result = out[members]  # a view where the members follow one another, else a copy
            lse[members] = softmax.attend(q, k, v, length, result)
            if not isinstance(members, slice):
                out[members] = result


def _span(members: Tensor) -> slice | Tensor:
    """Indices that follow one another as a slice: most rows of a head are alike, and slices are not copied."""
    first, last = int(members[0]), int(members[-1])
    return slice(first, last + 1) if last - first == len(members) - 1 else members


def _group_size(length: int, block_q: int, head_dim: int, item_size: int, rows: int) -> int:
    """Rows per batched product: 8 in 16 bits for 1,920 kept keys, D = 64 and two threads; each thread gets as many."""
    threads = torch.get_num_threads()
    per_row = length * max(block_q, 2 * head_dim) * item_size
    return min(rows, max(1, _GROUP_BYTES // per_row) * threads)

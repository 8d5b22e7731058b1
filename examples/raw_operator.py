"""Only the operators: compute block sums, keep the heaviest blocks, attend to those.

Runs on a CPU in a second, and on a GPU as it is: python examples/raw_operator.py
"""

import torch

from adaspa_cli.attention import BlockMask, attention_with_block_sums, block_sparse_attention

BATCH, HEADS, TOKENS, HEAD_DIM, BLOCK = 1, 4, 2000, 64, 64  # any number of tokens: the last block may be ragged


def smooth_tokens() -> torch.Tensor:
    """[B, H, L, D]: neighbours are alike, as in a video, so that attention is concentrated."""
    walk = torch.randn(BATCH, HEADS, TOKENS, HEAD_DIM).cumsum(dim=2)
    return 2 * walk / walk.std(dim=-1, keepdim=True)


def main() -> None:
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    where = {"device": "cuda" if on_gpu else "cpu", "dtype": torch.bfloat16 if on_gpu else torch.float32}
    x = smooth_tokens().to(**where)
    q, k, v = x, x, x

    # One dense call also gives the sum of the attention weights in each block: W [B, H, query blocks, key blocks].
    dense, _lse, sums = attention_with_block_sums(q, k, v, BLOCK)

    for density in (0.1, 0.2, 0.4):
        kept = round(density * sums.shape[-1])
        heaviest = sums[0].topk(kept, dim=-1).indices
        chosen = torch.zeros_like(sums[0], dtype=torch.bool).scatter(-1, heaviest, True)
        mask = BlockMask.from_bool(chosen, (BLOCK, BLOCK))

        sparse = block_sparse_attention(q, k, v, mask)

        recall = (sums[0] * chosen).sum() / sums.sum()
        error = (sparse - dense).float().norm() / dense.float().norm()
        print(f"{kept} of {sums.shape[-1]} blocks a row: {recall:.1%} of the attention weight, error {error:.1%}")


if __name__ == "__main__":
    main()

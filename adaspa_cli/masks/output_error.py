"""The score of a block by what leaving it out does to the output, instead of only its weight.

Maths. Query block i reads o_i = Σ_j W_ij v_j / Σ_j W_ij. Without block j, and to first order, it changes by
W_ij ||v̄_j - ō_i|| / Σ W: a heavy block whose values are what the row reads anyway may go, a lighter one that differs
may not. v̄_j is the mean value of key block j, ō_i the row's output over these means. Text counts in ō_i. The scores
come from the block sums of the search; q and k are not read again.

Shapes: H heads, Nq and Nk query and key blocks, D head dimension.
"""

import torch
from torch import Tensor

from adaspa_cli.masks.rows import head_groups


def output_error(block_sums: Tensor, value_means: Tensor) -> Tensor:
    """Scores S_ij = W_ij ||v̄_j - ō_i||, float32 [H, Nq, Nk].

    Args:
        block_sums: W [H, Nq, Nk], float32, not negative.
        value_means: mean value of each key block, float32 [H, Nk, D].
    """
    scores = torch.empty_like(block_sums)
    for part in head_groups(len(block_sums), block_sums[0].numel()):
        sums, means = block_sums[part], value_means[part]
        means = means - means.mean(1, keepdim=True)  # differences alone count, and small numbers cancel less
        total = sums.sum(-1, keepdim=True).clamp_(min=torch.finfo(sums.dtype).tiny)
        outputs = (sums @ means) / total
        torch.mul(sums, torch.cdist(outputs, means), out=scores[part])
    return scores

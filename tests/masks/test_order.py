"""Tokens in another order for some heads: there and back is the identity, and the heads that stay are not touched."""

import torch

from adaspa_cli.masks import HeadOrder

HEADS, TOKENS, HEAD_DIM = 3, 7, 4


def order(*moved: bool) -> HeadOrder:
    forward = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))
    return HeadOrder(torch.tensor(moved), forward, forward.argsort())


def test_moved_heads_are_permuted_and_the_others_stay() -> None:
    x = torch.randn(1, HEADS, TOKENS, HEAD_DIM)
    moved = order(True, False, True)
    y = moved.apply(x)
    for head in (0, 2):
        assert torch.equal(y[0, head], x[0, head, moved.forward])
    assert torch.equal(y[0, 1], x[0, 1])


def test_there_and_back_is_the_identity_also_for_strided_views() -> None:
    x = torch.randn(1, TOKENS, HEADS, HEAD_DIM).transpose(1, 2)
    moved = order(True, False, True)
    assert torch.equal(moved.undo(moved.apply(x)), x)
    assert not torch.equal(moved.undo(x), moved.apply(x)), "the permutation is not its own inverse"


def test_the_output_lies_in_memory_as_models_flatten_it() -> None:
    x = torch.randn(1, HEADS, TOKENS, HEAD_DIM)
    assert order(True, True, True).undo(x).transpose(1, 2).is_contiguous()

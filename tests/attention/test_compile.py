"""``torch.compile`` of a block with the sparse operators in it: one graph, and the same numbers."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from adaspa_cli.attention import BlockMask, block_sparse_attention, block_sums
from adaspa_cli.attention.operators import block_sparse_operator, block_sums_operator

HEADS, HEAD_DIM, TOKENS, BLOCK = 2, 64, 150, (64, 64)


class Block(nn.Module):
    """Projections round one of the operators."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.qkv = nn.Linear(HEADS * HEAD_DIM, 3 * HEADS * HEAD_DIM)
        self.out = nn.Linear(HEADS * HEAD_DIM, HEADS * HEAD_DIM)
        self.backend = backend

    def forward(self, x: Tensor, mask: BlockMask) -> tuple[Tensor, Tensor]:
        q, k, v = (part.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        out, lse = block_sparse_attention(q, k, v, mask, return_lse=True, backend=self.backend)
        sums = block_sums(q, k, lse, BLOCK, backend=self.backend)
        return x + self.out(out.transpose(1, 2).flatten(2)), sums


@pytest.fixture(autouse=True)
def _no_caches() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def mask() -> BlockMask:
    kept = torch.rand(HEADS, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    kept[0, 0] = False
    return BlockMask.from_bool(kept, BLOCK)


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_block_is_one_graph(compiler: str, backend: str) -> None:
    torch.manual_seed(0)
    block, x = Block(backend), torch.randn(1, TOKENS, HEADS * HEAD_DIM)
    with torch.no_grad():
        expected = block(x, mask())
        compiled = torch.compile(block, backend=compiler, fullgraph=True)
        for got, wanted in zip(compiled(x, mask()), expected, strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shapes_types_and_strides_are_foretold(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(1, TOKENS, HEADS, HEAD_DIM, dtype=dtype).transpose(1, 2) for _ in range(3))
    lists = mask()
    lse = torch.zeros(1, HEADS, TOKENS)
    checks = ("test_schema", "test_faketensor")
    arguments = (q, k, v, lists.counts, lists.indices, lists.key_blocks, *BLOCK, 0.125, "cpu")
    torch.library.opcheck(block_sparse_operator, arguments, test_utils=checks)
    torch.library.opcheck(block_sums_operator, (q, k, lse, *BLOCK, 0.125, 1, "cpu"), test_utils=checks)


def test_a_wrong_argument_is_named_when_the_code_runs() -> None:
    compiled = torch.compile(block_sparse_attention, backend="eager", fullgraph=True)
    x = torch.zeros(1, HEADS, TOKENS, HEAD_DIM)
    with pytest.raises(ValueError, match="v must match k"):
        compiled(x, x, x[:, :, 1:], mask())

"""The Hopper kernel's fixed reference: rows whose scores rise too far after the first tile are computed again.

A list is walked from its end, so the first tile of a row is the last blocks that it keeps. Scores are made by hand:
every query is one in its first element, and that of a key is the score over the scale.
"""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton.experimental.gluon", reason="this triton has no Gluon")

import adaspa_kernels
from adaspa_cli.attention import reference
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_kernels import launch
from tests.kernels.conftest import interpret_hopper

BLOCKS = 6
SCALE = 0.125  # powers of two keep the scores exact in any dtype


@pytest.fixture(autouse=True)
def hopper(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.type == "cpu":
        interpret_hopper(monkeypatch)
    elif reason := launch.hopper_unavailable("block_sparse_attention", (64, 64), torch.empty(1, 1, 64, 64).to(device)):
        pytest.skip(reason)
    monkeypatch.setattr(launch, "PREFERRED_PATH", "hopper")


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The launcher's counters: rows taken, copied and to compute again; of those, taken and copied."""
    seen: list[Tensor] = []
    zeros = torch.zeros

    def remember(*args: object, **options: object) -> Tensor:
        x: Tensor = zeros(*args, **options)  # type: ignore[call-overload]
        if args == (5,):
            seen.append(x)
        return x

    monkeypatch.setattr(torch, "zeros", remember)
    return seen


def inputs(device: torch.device, scores: list[float], head_dim: int, block: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v [1, 1, BLOCKS * block, D]: each query has about ``scores[j]`` with all keys of block j."""
    random = torch.Generator().manual_seed(0)
    shape = (1, BLOCKS * block, 1, head_dim)
    q, k, v = (torch.randn(shape, generator=random) / 8 for _ in range(3))
    q[..., 0] = 1
    k[..., 0] = (torch.tensor(scores) / SCALE).repeat_interleave(block)[None, :, None]
    return [x.to(device, dtype).transpose(1, 2) for x in (q, k, v)]


def run(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> tuple[Tensor, Tensor]:
    return adaspa_kernels.block_sparse_attention(
        q, k, v, mask.counts, mask.indices, key_blocks=mask.key_blocks, block_size=mask.block_size, scale=SCALE
    )


def check(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> None:
    out, lse = run(q, k, v, mask)
    truth, true_lse = reference.block_sparse_attention(q.double(), k.double(), v.double(), mask, SCALE)
    tolerance = 2e-2 if q.dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(out.double(), truth, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse.double(), true_lse, atol=1e-5, rtol=1e-6)


def precise(device: torch.device) -> torch.dtype:
    """What the kernel computes with a fixed reference: bfloat16, and in the stand-in on the CPU float32."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


@pytest.mark.parametrize(("head_dim", "block"), [(64, 64), (128, 64), (64, 128), (128, 128)])
@pytest.mark.parametrize(
    ("first", "others", "again"),
    [
        (0.0, 0.0, False),
        (40.0, -40.0, False),  # all others weigh nothing
        (-30.0, 30.0, False),  # 60, and 6 for the number of keys: within the 66 by which the sum may rise
        (-32.0, 32.0, True),
        (-40.0, 40.0, True),
        (-400.0, 400.0, True),  # weights are infinite
        (0.0, 3000.0, True),
    ],
)
def test_scores_may_rise_as_far_as_they_like(
    device: torch.device, counters: list[Tensor], head_dim: int, block: int, first: float, others: float, again: bool
) -> None:
    q, k, v = inputs(device, [others] * (BLOCKS - 2) + [first] * 2, head_dim, block, precise(device))
    check(q, k, v, BlockMask.full(1, BLOCKS, BLOCKS, (block, block), device))
    warpgroups = block // 64
    assert counters[0][2] == (BLOCKS * warpgroups if again else 0)


def test_only_rows_that_left_the_range_are_computed_again(device: torch.device, counters: list[Tensor]) -> None:
    """Rows 1 and 4 keep the block whose scores are far above those of the last one; they are not the longest."""
    q, k, v = inputs(device, [500.0, 1.0, 2.0, 0.0, 1.0, 0.0], 64, 64, precise(device))
    kept = torch.ones(1, BLOCKS, BLOCKS, dtype=torch.bool)
    kept[0, [0, 2, 3, 5], 0] = False
    kept[0, [1, 4], 2:4] = False
    kept[0, 3] = False  # an empty row has nothing to compute again
    check(q, k, v, BlockMask.from_bool(kept, (64, 64)).to(device))
    assert counters[0][2] == 2
    # Each team asks once more than it gets.
    assert 2 < counters[0][3] <= 2 + 3 * 132


@pytest.mark.parametrize(("block", "query"), [(64, 70), (128, 130), (128, 200)])
def test_one_query_is_enough(device: torch.device, counters: list[Tensor], block: int, query: int) -> None:
    """Its whole block is computed again, once, whichever of the team's warpgroups has it."""
    q, k, v = inputs(device, [40.0] * 4 + [-40.0] * 2, 64, block, precise(device))
    largest = q[:, :, query, 0].clone()
    q[..., 0] = 1 / 16
    q[:, :, query, 0] = largest
    check(q, k, v, BlockMask.full(1, BLOCKS, BLOCKS, (block, block), device))
    assert counters[0][2] == 1


def test_float16_follows_the_largest_score(device: torch.device, counters: list[Tensor]) -> None:
    """32 in log2 below a reference its weights would all be zero."""
    q, k, v = inputs(device, [0.0, -5.0, 0.0, 2.0, 0.0, 0.0], 64, 64, torch.float16)
    mask = BlockMask.full(1, BLOCKS, BLOCKS, (64, 64), device)
    out, _ = run(q, k, v, mask)
    truth, _ = reference.block_sparse_attention(q.double(), k.double(), v.double(), mask, SCALE)
    torch.testing.assert_close(out.double(), truth, atol=2e-3, rtol=2e-3)
    assert counters[0].tolist()[2:] == [0, 0, 0]


@pytest.mark.parametrize(
    ("finite", "again"), [(200.0, True), (60.0, False), (0.0, False), (-6.0, False), (-7.0, True), (-60.0, True)]
)
def test_infinite_scores_are_as_the_online_softmax_has_them(
    device: torch.device, counters: list[Tensor], finite: float, again: bool
) -> None:
    """Minus infinity in all of the first tile says nothing of the others; NaN stays NaN, in its rows alone."""
    q, k, v = inputs(device, [finite] * 4 + [-torch.inf] * 2, 64, 64, precise(device))
    mask = BlockMask.full(1, BLOCKS, BLOCKS, (64, 64), device)
    check(q, k, v, mask)
    assert counters[0][2] == (BLOCKS if again else 0)
    q[:, :, :64] = torch.nan
    out, lse = run(q, k, v, mask)
    assert out[:, :, :64].isnan().all()
    assert lse[:, :, :64].isnan().all()
    assert out[:, :, 64:].isfinite().all()
    assert lse[:, :, 64:].isfinite().all()

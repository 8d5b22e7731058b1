"""Teams that keep in step: programs run at once here, also where only a part of the grid fits on the GPU."""

import pytest
import torch

pytest.importorskip("triton.experimental.gluon", reason="this triton has no Gluon")

import adaspa_kernels
from adaspa_cli.attention import reference
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_kernels import hopper_block_sparse, launch
from tests.kernels import gluon_on_cpu
from tests.kernels.conftest import interpret_hopper


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("resident", [1, 2, 5])
def test_rows_of_any_length_end_however_many_programs_run(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, resident: int, block: int
) -> None:
    """Rows of text are longer than those a round later, so nobody waits for them; some rows are empty."""
    if device.type != "cpu":
        pytest.skip("the GPU runs the kernel itself")
    interpret_hopper(monkeypatch)
    monkeypatch.setattr(launch, "PREFERRED_PATH", "hopper")
    monkeypatch.setattr(hopper_block_sparse, "multiprocessors", lambda _: 5)
    monkeypatch.setattr(gluon_on_cpu, "RESIDENT", resident)
    random = torch.Generator().manual_seed(resident)
    q, k, v = (torch.randn(2, 9 * block + 7, 2, 64, generator=random).transpose(1, 2) for _ in range(3))
    kept = torch.rand(2, 10, 10, generator=random) < 0.3
    kept[:, -2:] = True
    kept[0, 3:5] = False
    mask = BlockMask.from_bool(kept, (block, block))
    out, lse = adaspa_kernels.block_sparse_attention(
        q, k, v, mask.counts, mask.indices, key_blocks=10, block_size=(block, block), scale=0.1
    )
    truth, true_lse = reference.block_sparse_attention(q, k, v, mask, 0.1)
    torch.testing.assert_close(out, truth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, true_lse, atol=1e-5, rtol=1e-5)


def test_a_wait_for_what_never_comes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    program = gluon_on_cpu.Program((0,), (1,), None)  # type: ignore[arg-type]
    monkeypatch.setattr(gluon_on_cpu, "PATIENCE", 3 * gluon_on_cpu.PAUSE)
    nothing_yet = gluon_on_cpu.Pointer(torch.zeros(2, dtype=torch.int32), 1)
    looks = (program.load(nothing_yet, volatile=True) for _ in range(10))
    with pytest.raises(AssertionError, match="deadlock between programs"):
        any(looks)

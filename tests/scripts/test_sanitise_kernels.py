"""The sanitizer's script: its cases run, in the interpreter, and its reports are read."""

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from scripts import sanitise_kernels
from scripts.sanitise_kernels import Report, read_report

RACES = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at hopper_block_sparse_kernel+0x1a30 in a.py:240
=========     and Read access at hopper_block_sparse_kernel+0x2b40 in a.py:251 [64 hazards]
=========
========= Error: Race reported between Write access at nvjet_sm90_tst+0x10
=========     and Read access at nvjet_sm90_tst+0x20 [8 hazards]
=========
========= Error: Race reported between Write access at hopper_block_sparse_kernel+0x1a30 in a.py:240
=========     and Read access at hopper_block_sparse_kernel+0x2b50 in a.py:252 [64 hazards]
========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)
"""
ADDRESSES = """\
========= Invalid __global__ read of size 4 bytes
=========     at weigh_rows_kernel+0x120 in selection.py:70
=========     by thread (3,0,0) in block (0,1,0)
========= ERROR SUMMARY: 1 error
"""


def test_reports_are_counted_by_kernel() -> None:
    races = {
        "race reported: hopper_block_sparse_kernel": 2,
        "race reported: nvjet_sm90_tst": 1,
    }
    assert read_report(RACES) == Report(3, races)
    assert read_report(ADDRESSES) == Report(1, {"invalid: weigh_rows_kernel": 1})
    assert read_report("========= ERROR SUMMARY: 0 errors\n") == Report(0, {})
    assert read_report("Traceback (most recent call last):\n") == Report(None, {})


@pytest.mark.parametrize("name", [name for name in sanitise_kernels.cases() if "hopper" not in name])
def test_cases_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitise_kernels, "TOKENS", 390)
    sanitise_kernels.cases()[name]()


@pytest.mark.gpu
def test_control_adds_up() -> None:
    from scripts import racecheck_control

    racecheck_control.run()

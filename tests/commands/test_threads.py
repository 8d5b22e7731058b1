"""How threads wait for one another: asleep, unless the user says otherwise."""

import os
import subprocess
import sys

import pytest

SCRIPT = "import os; from adaspa_cli.__main__ import main; main(); print(os.environ.get('OMP_WAIT_POLICY'))"
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.mark.parametrize(
    ("chosen", "policy"),
    [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"), ({"GOMP_SPINCOUNT": "1000"}, "None")],
)
def test_threads_sleep_unless_the_user_says_otherwise(chosen: dict[str, str], policy: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in CHOICES} | chosen
    command = [sys.executable, "-c", SCRIPT, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == policy

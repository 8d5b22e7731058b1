"""Standard streams as shells and services leave them: closed, full, without a reader, in another encoding."""

import json
import os
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "adaspa_cli"]
SHOW = ["generate", "--print-config", "--prompt", "ein grüner Kreis 🟢"]


def run(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the shell, in which ``adaspa`` is ours."""
    script = f'adaspa() {{ {sys.executable} -m adaspa_cli "$@"; }}; set -o pipefail; {command}'
    env = {**os.environ, "NO_COLOR": "1", **environment}
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=env)


def test_a_reader_that_has_enough() -> None:
    done = run("adaspa generate --print-config | true")
    assert done.returncode == 1
    assert done.stderr == ""


def test_a_full_disk_behind_stdout() -> None:
    done = run("adaspa generate --print-config > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: cannot write the result to stdout: No space left on device\n"


@pytest.mark.parametrize("stream", ["1>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_lead_nowhere(stream: str) -> None:
    """The next file that is opened must not become stdout."""
    assert run(f"adaspa generate --print-config {stream}").returncode == 0
    done = run(f"adaspa generate --sparsity 2 {stream}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_letters_that_the_encoding_lacks() -> None:
    done = subprocess.run(
        [*COMMAND, *SHOW], capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0, done.stderr
    assert b"\\U0001f7e2" in done.stdout
    shown = subprocess.run(
        [*COMMAND, *SHOW, "--json"], capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert json.loads(shown.stdout)["prompt"]["value"] == ["ein grüner Kreis 🟢"]


@pytest.mark.parametrize(
    "arguments",
    ["--json --steps x", "--json --no-such-flag", "--steps --json", "--json --sparsity 2", "--json surplus"],
)
def test_errors_are_json_also_for_arguments_that_cannot_be_parsed(arguments: str) -> None:
    done = run(f"adaspa generate {arguments}")
    assert done.returncode == 2
    assert json.loads(done.stdout).keys() == {"error", "hint"}
    assert done.stderr == ""


def test_arguments_that_cannot_be_parsed_are_one_line() -> None:
    done = run("adaspa generate --steps x")
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert "--steps" in error
    assert hint.startswith("  try: ")
    assert done.stdout == ""

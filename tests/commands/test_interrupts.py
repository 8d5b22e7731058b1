"""Ctrl-C at any moment: exit code 130 and one line, nothing half-written. Real processes, which press it themselves."""

import subprocess
import sys
from pathlib import Path

import pytest

from adaspa_cli.interrupts import EXIT_CODE

# Presses Ctrl-C when a module is imported for the first time: any moment of a start, and always the same.
PRESS = """
import os, signal, sys
module = sys.argv.pop(1)
def press(event, arguments):
    global module
    if event == "import" and arguments[0] == module:
        module = None
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(press)
from adaspa_cli.__main__ import main
sys.exit(main())
"""

# The same when a file is opened whose path holds a text.
PRESS_AT_FILE = PRESS.replace(
    'event == "import" and arguments[0] == module', 'module and event == "open" and module in str(arguments[0])'
)

# Runs a body as a command's, after the point from which there is something to put right.
BODY = """
import os, signal, sys, time
from adaspa_cli import interrupts
interrupts.Interrupts().install()
from adaspa_cli.commands.guard import guard
from adaspa_cli.console import Console
import typer
def press():
    os.kill(os.getpid(), signal.SIGINT)
def work():
    for _ in range(1000):
        time.sleep(0.01)
def body():
    interrupts.unwind()
    {body}
    print("went on to its end")
try:
    with guard(Console(), "stopped"):
        body()
except typer.Exit as ended:
    sys.exit(ended.exit_code)
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "module", ["adaspa_cli.interrupts", "typer", "adaspa_cli.commands.bench", "yaml", "torch._C", "diffusers"]
)
def test_an_import_is_interrupted(tmp_path: Path, module: str) -> None:
    size = ["--height", "96", "--width", "96", "--frames", "9", "--steps", "2", "--prompt", "x"]
    done = run(PRESS, module, "generate", *size, "--quiet", "--out", str(tmp_path / "out"))
    assert done.returncode == EXIT_CODE, done.stderr
    assert [line for line in done.stderr.splitlines() if "interrupted" not in line] == []
    assert done.stderr.count("\n") <= 1
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_tables_alone_are_not_left_half_written(tmp_path: Path) -> None:
    bench = tmp_path / "bench.yaml"
    bench.write_text("rows: [{method: full}]\nprompts: [x]\nrun: {height: 96, width: 96, frames: 9, steps: 2}\n")
    out = tmp_path / "out"
    out.mkdir()
    done = run(PRESS_AT_FILE, "rows.partial", "bench", "-c", str(bench), "-o", str(out), "--tables-only")
    assert done.returncode == EXIT_CODE, done.stderr
    assert done.stderr.splitlines()[-1].startswith("interrupted; complete runs are kept")
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.md"]


@pytest.mark.parametrize(
    "body",
    [
        "press()",
        # swallowed by a library
        """
    try:
        press()
    except BaseException:
        pass
    work()""",
        # swallowed by a destructor
        """
    class Thing:
        def __del__(self):
            press()
    thing = Thing()
    del thing
    work()""",
        # come out as another error
        """
    try:
        press()
    except KeyboardInterrupt:
        raise ModuleNotFoundError("Could not import module 'x'") from None""",
        # pressed again while cleaning up
        """
    try:
        press()
    finally:
        press()
        print("cleaned up", file=sys.stderr)""",
    ],
)
def test_an_interrupt_gets_through(body: str) -> None:
    done = run(BODY.format(body=body))
    assert done.returncode == EXIT_CODE, done.stderr
    assert done.stderr.replace("cleaned up\n", "") == "stopped\n"
    assert done.stdout == ""
    assert ("cleaned up" in done.stderr) == ("finally" in body)


def test_a_process_that_was_started_to_ignore_it_goes_on() -> None:
    """As in the background of a script."""
    begin = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = run(begin + BODY.format(body="press()"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "went on to its end\n"

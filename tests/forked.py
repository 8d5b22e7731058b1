"""Programs run as forks of one process that has imported what they need: a start of Python and its imports happen once.

A program is a file that calls :func:`serve` when it is run; a test starts it with :func:`forks_of`. It imports next to
nothing itself, so that a program can show what a command imports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parents[1]


class Forks:
    """The process that forks, as seen from a test; ``folder`` is where a fork's streams go."""

    def __init__(self, requests: IO[str], answers: IO[str], folder: Path) -> None:
        self._requests, self._answers, self._folder = requests, answers, folder

    def run(self, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the program in a fork."""
        out, err = self._folder / "stdout", self._folder / "stderr"
        request = {"cwd": str(cwd or Path.cwd()), "out": str(out), "err": str(err), "argv": [*map(str, arguments)]}
        print(json.dumps(request), file=self._requests, flush=True)
        code = int(self._answers.readline())
        return subprocess.CompletedProcess(arguments, code, *(x.read_text(encoding="utf-8") for x in (out, err)))


@contextmanager
def forks_of(program: str, folder: Path) -> Iterator[Forks]:
    """Start a program, for as long as it is needed, offline and without Triton's interpreter."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *sys.path])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRITON_INTERPRET": "", "PYTHONPATH": path}
    command, pipe = [sys.executable, program], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdin=pipe, stdout=pipe) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield Forks(server.stdin, server.stdout, folder)
        server.stdin.close()


def serve(body: Callable[[list[str]], int]) -> None:
    """Run ``body`` in a fork for each request, a line of JSON; answer with its exit code. Runs in the program."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(body, **json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201


def _run(body: Callable[[list[str]], int], cwd: str, out: str, err: str, argv: list[str]) -> NoReturn:
    for number, place in enumerate((os.devnull, out, err)):
        os.dup2(os.open(place, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    code = 1
    try:
        os.chdir(cwd)
        code = body(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

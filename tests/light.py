"""``adaspa`` in processes without anything heavy: each a fork of one that has imported the command line alone.

So a command that must not import torch costs no start of Python, and what it imports is seen. The file is its own
child: run as a program it reads commands as JSON, a line each, and answers with their exit codes.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import IO, NoReturn

HEAVY = ("torch", "diffusers", "transformers", "numpy", "matplotlib")
ROOT = Path(__file__).resolve().parents[1]


class Light:
    """The process that forks. Its environment is that of a user who is offline, without Triton's interpreter."""

    def __init__(self, requests: IO[str], answers: IO[str], folder: Path) -> None:
        self._requests, self._answers, self._folder = requests, answers, folder

    def run(self, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run ``adaspa``; the last line on its stderr is the list of what it imported of ``HEAVY``."""
        out, err = self._folder / "stdout", self._folder / "stderr"
        request = {"cwd": str(cwd or Path.cwd()), "out": str(out), "err": str(err), "argv": [*map(str, arguments)]}
        print(json.dumps(request), file=self._requests, flush=True)
        code = int(self._answers.readline())
        return subprocess.CompletedProcess(arguments, code, *(x.read_text(encoding="utf-8") for x in (out, err)))


@contextmanager
def light_processes(folder: Path) -> Iterator[Light]:
    """The process that forks, for as long as it is needed; ``folder`` is where commands write."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRITON_INTERPRET": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdin=pipe, stdout=pipe) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield Light(server.stdin, server.stdout, folder)
        server.stdin.close()


def _serve() -> None:
    from adaspa_cli.__main__ import main

    sys.argv = ["adaspa", "generate", "--print-config"]
    with redirect_stdout(io.StringIO()):
        main()  # so that a fork has loaded what every command loads
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201


def _run(cwd: str, out: str, err: str, argv: list[str]) -> NoReturn:
    from adaspa_cli.__main__ import main

    for number, place in enumerate((os.devnull, out, err)):
        os.dup2(os.open(place, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(cwd)
    sys.argv = ["adaspa", *argv]
    code = main()
    print([name for name in HEAVY if name in sys.modules], file=sys.stderr)  # noqa: T201
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()

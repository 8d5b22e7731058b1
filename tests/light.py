"""``adaspa`` in a process that has imported the command line and nothing heavy: a program for tests/forked.py.

A fork's last line on stderr is the list of what the command imported of ``HEAVY``.
"""

import io
import sys
from contextlib import redirect_stdout

from adaspa_cli.__main__ import main
from tests.forked import serve

HEAVY = ("torch", "diffusers", "transformers", "numpy", "matplotlib")


def run(arguments: list[str]) -> int:
    sys.argv = ["adaspa", *arguments]
    code = main()
    print([name for name in HEAVY if name in sys.modules], file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    sys.argv = ["adaspa", "generate", "--print-config"]
    with redirect_stdout(io.StringIO()):
        main()  # so that a fork has loaded what every command loads
    serve(run)

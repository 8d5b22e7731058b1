"""``adaspa``, and ``python -m adaspa_cli``: takes over Ctrl-C before anything is imported that takes time."""

import os

try:
    from adaspa_cli.interrupts import Interrupts
except KeyboardInterrupt:
    os.write(2, b"interrupted; nothing was made\n")
    os._exit(130)


def main() -> int:
    """Run the command of ``sys.argv``; returns the exit code."""
    Interrupts().install()
    _wait_without_spinning()
    from adaspa_cli import app

    return app.main()


def _wait_without_spinning() -> None:
    """Let threads of OpenMP sleep while they wait for one another, unless the user chose how they wait.

    Spinning, its default, takes the cores away from other processes, and from the thread that is waited for.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "passive"  # read when torch is imported


if __name__ == "__main__":
    raise SystemExit(main())

"""``adaspa``, and ``python -m adaspa_cli``: takes over Ctrl-C before anything is imported that takes time."""

try:
    from adaspa_cli.interrupts import Interrupts
except KeyboardInterrupt:
    import os

    os.write(2, b"interrupted; nothing was made\n")
    os._exit(130)


def main() -> int:
    """Run the command of ``sys.argv``; returns the exit code."""
    Interrupts().install()
    from adaspa_cli import app

    return app.main()


if __name__ == "__main__":
    raise SystemExit(main())

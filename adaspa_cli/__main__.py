"""``python -m adaspa_cli``."""

from adaspa_cli.app import main

if __name__ == "__main__":
    main()

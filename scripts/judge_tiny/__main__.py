"""How well a model follows captions: ``python -m scripts.judge_tiny evaluate|videos``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from scripts.judge_tiny.evaluate import evaluate
from scripts.judge_tiny.videos import judge_videos
from scripts.train_world.pool import Geometry
from scripts.train_world.sampling import load_folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    options = _parser().parse_args(arguments)
    if options.command == "videos":
        judge_videos(options.folder)
        return
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = {"steps": options.steps, "batch": options.batch, "seed": options.seed, "limit": options.limit}
    evaluate(load_folder(options.folder, device), Geometry(), options.out, **settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.judge_tiny", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("evaluate", help="sample the held-out captions and judge the clips")
    command.add_argument("--folder", type=Path, default=Path("adaspa_cli/assets/tiny"), help="a model (%(default)s)")
    command.add_argument("--out", type=Path, required=True, help="folder to write")
    command.add_argument("--device", help="cuda or cpu; a GPU if there is one")
    command.add_argument("--steps", type=int, default=12, help="of sampling (%(default)s)")
    command.add_argument("--batch", type=int, default=16)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--limit", type=int, help="only the first so many captions")
    command = commands.add_parser("videos", help="judge videos of held-out captions that adaspa generate made")
    command.add_argument("folder", type=Path)
    return parser


if __name__ == "__main__":
    main()

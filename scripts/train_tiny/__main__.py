"""Command line of the training: ``python -m scripts.train_tiny vae|small|full|bundle|export|evaluate|all``.

All stages share one folder, ``--work``, and continue from its last checkpoint.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.train_tiny.evaluate import evaluate, load_folder
from scripts.train_tiny.export import bundle, export, load_trained, unbundle
from scripts.train_tiny.loop import LoopConfig
from scripts.train_tiny.pool import Geometry, PoolConfig
from scripts.train_tiny.transformer import StageConfig, TransformerConfig, train_transformer
from scripts.train_tiny.vae import VaeConfig, train_vae

# What the bundled weights went through: 2.2, 5.9 and 6.3 minutes on one H100 that ran other things besides (chosen
# there by --fit-minutes).
LOOPS = {
    "vae": LoopConfig(steps=547, batch=16, learning_rate=1e-3, warmup=50, weight_decay=0.0, ema=0.998, later_cost=1.15),
    "small": LoopConfig(steps=2900, batch=64, learning_rate=1e-3, matrix_learning_rate=5e-3, warmup=200, ema=0.999),
    "full": LoopConfig(
        steps=1663, batch=16, learning_rate=6e-4, matrix_learning_rate=2.5e-3, warmup=100, ema=0.998, later_cost=1.3
    ),
}
STAGES = {
    "small": StageConfig("small", Geometry(33, 128, 128), PoolConfig(encode_batch=128), shift=3.0, stride=2.0),
    "full": StageConfig(
        "full", Geometry(33, 256, 256), PoolConfig(size=4096, chunk=64), shift=4.0, guidance=0.4, start_from="small"
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it came to its end, 3 when training stopped early for lack of time."""
    options = _parser().parse_args(arguments)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = True
    if options.from_bundle is not None:
        unbundle(options.from_bundle, options.work)
    done = _COMMANDS[options.command](options, device)
    if options.bundle is not None:
        stage = options.command if options.command in STAGES else getattr(options, "stage", "full")
        bundle(options.work, stage, options.bundle, raw=not options.bundle_ema_only)
    return 0 if done else 3


def _vae(options: argparse.Namespace, device: torch.device) -> bool:
    return train_vae(VaeConfig(), _loop("vae", options), options.work, device)


def _transformer(options: argparse.Namespace, device: torch.device) -> bool:
    stage = STAGES[options.command]
    changes: dict[str, Any] = {
        "compile": options.compile,
        "attention": options.attention,
        "eval_minutes": options.eval_every_minutes,
    }
    if options.shift is not None:
        changes["shift"] = options.shift
    if options.pool is not None:
        changes["pool"] = dataclasses.replace(stage.pool, size=options.pool)
    stage = dataclasses.replace(stage, **changes)
    return train_transformer(TransformerConfig(), stage, _loop(stage.name, options), options.work, device)


def _bundle(options: argparse.Namespace, device: torch.device) -> bool:  # noqa: ARG001
    if options.bundle is None and options.from_bundle is None:
        raise SystemExit("say where: --bundle DIR, or --from-bundle DIR")
    return True


def _export(options: argparse.Namespace, device: torch.device) -> bool:  # noqa: ARG001
    export(options.work, options.stage, options.out)
    return True


def _evaluate(options: argparse.Namespace, device: torch.device) -> bool:
    if options.folder is not None:
        pipe, geometry, records = load_folder(options.folder, device), Geometry(), None
    else:
        trained = load_trained(options.work, options.stage, device)
        pipe, geometry, records = trained.pipe, trained.geometry, options.work / options.stage
    out = options.out or options.work / "evaluation"
    settings = {"steps": options.steps or 12, "batch": options.batch or 16, "seed": options.seed}
    evaluate(pipe, geometry, out, limit=options.limit, **settings)
    if records is not None:
        (records / "evaluation.json").write_text((out / "evaluation.json").read_text())
    return True


def _all(options: argparse.Namespace, device: torch.device) -> bool:
    for command in ("vae", "small", "full", "evaluate", "export"):
        part = argparse.Namespace(**{**vars(options), "command": command})
        if command == "evaluate":
            part.out = options.work / "evaluation"
        if not _COMMANDS[command](part, device):
            return False
    return True


_COMMANDS = {
    "vae": _vae,
    "small": _transformer,
    "full": _transformer,
    "bundle": _bundle,
    "export": _export,
    "evaluate": _evaluate,
    "all": _all,
}


def _loop(name: str, options: argparse.Namespace) -> LoopConfig:
    """The stage's defaults with what the command line changes."""
    names = ("steps", "batch", "learning_rate", "max_minutes", "fit_minutes", "seed")
    given = {field: getattr(options, field) for field in names if getattr(options, field) is not None}
    return dataclasses.replace(LOOPS[name], **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.train_tiny", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in _COMMANDS:
        command = commands.add_parser(name)
        _common_arguments(command)
        if name in ("small", "full", "all"):
            _transformer_arguments(command)
        if name in ("export", "evaluate", "bundle", "all"):
            command.add_argument("--stage", choices=list(STAGES), default="full", help="whose averaged weights")
        if name in ("export", "evaluate", "all"):
            command.add_argument("--out", type=Path, required=name != "evaluate", help="folder to write")
        if name in ("evaluate", "all"):
            command.add_argument("--folder", type=Path, help="an exported folder, instead of --work's checkpoint")
            command.add_argument("--limit", type=int, help="only the first so many captions")
    return parser


def _common_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--work", type=Path, default=Path(".work/tiny"), help="checkpoints (default: %(default)s)")
    command.add_argument("--device", help="cuda or cpu; a GPU if there is one")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--steps", type=int, help="training steps; sampling steps of 'evaluate'")
    command.add_argument("--batch", type=int)
    command.add_argument("--learning-rate", type=float, help="peak of AdamW's; Muon keeps its own")
    command.add_argument("--max-minutes", type=float, help="stop then, with a checkpoint")
    command.add_argument("--fit-minutes", type=float, help="choose --steps so that it takes so long")
    command.add_argument("--bundle", type=Path, metavar="DIR", help="then pack what is needed to continue elsewhere")
    command.add_argument("--bundle-ema-only", action="store_true", help="leave out what only training needs")
    command.add_argument("--from-bundle", type=Path, metavar="DIR", help="first unpack a bundle into --work")


def _transformer_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--compile", action="store_true", help="compile the repeated blocks")
    command.add_argument("--attention", choices=("auto", "flash", "cudnn"), default="auto")
    command.add_argument("--eval-every-minutes", type=float, help="sample and judge 16 clips now and then")
    command.add_argument("--shift", type=float, help="shift of the noise schedule")
    command.add_argument("--pool", type=int, help="clips in the pool")


if __name__ == "__main__":
    raise SystemExit(main())

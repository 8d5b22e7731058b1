"""Command line of the training: ``python -m scripts.train_world STAGE|all|warm|evaluate|reconstruct|export|speed``.

All stages share one folder, ``--work``, and continue from its last checkpoint. On several GPUs:
``torchrun --nproc-per-node 4 -m scripts.train_world all --compile``.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from scripts.train_world.autoencoder import load_vae
from scripts.train_world.card import write_card
from scripts.train_world.checkpoint import read_json
from scripts.train_world.earlier import RECORD, TEXT_STAGE, begin_with, beginning_of, vae_folder
from scripts.train_world.evaluate import evaluate
from scripts.train_world.export import export, load_trained
from scripts.train_world.loop import LoopConfig
from scripts.train_world.network import set_stride
from scripts.train_world.parallel import barrier, rank, start, stop, world
from scripts.train_world.pool import Geometry
from scripts.train_world.reading import train_text
from scripts.train_world.recipe import (
    AGAIN,
    DECODER_STAGE,
    EVALUATION_MINUTES,
    LOOPS,
    MINUTES,
    MODEL,
    ORDER,
    STAGES,
    USUAL,
    VAE,
    VAE_STAGE,
    WorldStage,
    batch_of,
    rate_share,
)
from scripts.train_world.reconstructions import judged_reconstructions, remake
from scripts.train_world.sampling import load_folder
from scripts.train_world.speed import attention_speed, stage_speed, vae_speed
from scripts.train_world.transformer import train_stage
from scripts.train_world.vae import train_vae
from scripts.train_world.warm import warm


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it came to its end, 3 when training stopped early for lack of time."""
    options = _parser().parse_args(arguments)
    device = start(options.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = not options.no_benchmark
        torch.backends.cudnn.allow_tf32 = True
        torch._dynamo.config.recompile_limit = 32
        # Both are wrong in torch 2.11 where sizes are symbols: an assertion fails, and a product lacks its brackets.
        torch._inductor.config.triton.coalesce_tiling_analysis = False
        torch._inductor.config.triton.mix_order_reduction = False
    try:
        return 0 if _COMMANDS[options.command](options, device) else 3
    finally:
        stop()


def _vae(options: argparse.Namespace, device: torch.device) -> bool:
    stage = {"vae": VAE_STAGE, "decoder": DECODER_STAGE}[options.command]
    if options.vae_channels is not None:
        stage = dataclasses.replace(stage, model=dataclasses.replace(stage.model, channels=options.vae_channels))
    _begin(options)
    return train_vae(stage, _loop(stage.name, options), options.work, device)


def _stage(options: argparse.Namespace, device: torch.device) -> bool:
    _begin(options)
    stage = _configured(options.command, options)
    return train_stage(MODEL, stage, _loop(stage.name, options), options.work, device)


def _begin(options: argparse.Namespace) -> None:
    if options.start_from is not None:
        begin_with(options.start_from, options.work)


def _configured(name: str, options: argparse.Namespace) -> WorldStage:
    """A stage with what the command line changes. A model that has guidance keeps it."""
    stage = STAGES[name]
    has = beginning_of(options.work, name, stage.after).guidance
    guidance = options.guidance if options.guidance is not None else stage.guidance or has
    return dataclasses.replace(
        stage,
        compile=options.compile,
        eval_minutes=options.eval_every_minutes,
        guidance=guidance,
        guidance_from=0.0 if has else stage.guidance_from,
        attention=options.attention or stage.attention,
    )


def _text(options: argparse.Namespace, device: torch.device) -> bool:
    _begin(options)
    return train_text(MODEL, _loop("text", options), options.work, device)


def _warm(options: argparse.Namespace, device: torch.device) -> bool:
    """All stages but the first one, which is trained at the same time."""
    for name in (name for name, _ in options.stages[1:] if name in STAGES):
        warm(MODEL, VAE, _configured(name, options), batch_of(name, world()), device)
    return True


def _evaluate(options: argparse.Namespace, device: torch.device) -> bool:
    if options.folder is not None:
        pipe = load_folder(options.folder, device)
        record = read_json(options.folder / RECORD)
        geometry = Geometry(**record["geometry"])
        set_stride(pipe.transformer, record["stride"])
    else:
        trained = load_trained(options.work, options.stage, device)
        pipe, geometry = trained.pipe, trained.geometry
    if options.shift is not None:
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=options.shift)
    out = options.out or options.work / "evaluation"
    settings = {"steps": options.steps or 14, "batch": options.batch or 8, "seed": options.seed or 0}
    evaluate(pipe, geometry, out, limit=options.limit, **settings)
    if rank() == 0 and options.shift is None:  # the card is of the model's own steps
        evaluation = read_json(out / "evaluation.json")
        if options.folder is not None:
            write_card(options.folder, evaluation)
        else:
            (options.work / options.stage / "evaluation.json").write_text(json.dumps(evaluation, indent=1) + "\n")
    barrier()
    return True


def _reconstruct(options: argparse.Namespace, device: torch.device) -> bool:
    if options.truth:
        remade = torch.Tensor.clone
    else:
        vae = load_vae(vae_folder(options.work) if options.folder is None else options.folder / "vae", device)
        remade = partial(remake, vae)
    for side in (128, 192, 256):
        found = judged_reconstructions(remade, Geometry(33, side, side), options.limit or 24, device)
        shares = ", ".join(f"{name} {right} of {count}" for name, (right, count) in found.items())
        print(f"{side}x{side}x33: {shares}", flush=True)
    return True


def _export(options: argparse.Namespace, device: torch.device) -> bool:  # noqa: ARG001
    if rank() == 0:
        export(options.work, options.stage, options.out)
    return True


def _all(options: argparse.Namespace, device: torch.device) -> bool:
    """The stages in turn, the last one for what the deadline leaves, and the evaluation of the last one."""
    began, last = time.monotonic(), options.stages[-1][0]
    kept_free = 0.0 if options.no_evaluation else EVALUATION_MINUTES
    for name, minutes in options.stages:
        part = argparse.Namespace(**{**vars(options), "command": name, "steps": None, "batch": None})
        if minutes is not None:
            part.scale = minutes / MINUTES[name]
        elif name == last and options.deadline_minutes is not None:
            spent = (time.monotonic() - began) / 60.0
            part.scale = max(0.5, options.deadline_minutes - spent - kept_free) / MINUTES[name]
        torch._dynamo.reset()  # or it would compile the next stage's blocks for any batch
        if not _COMMANDS[name](part, device):
            return False
    if options.no_evaluation or last not in STAGES:
        return True
    part = argparse.Namespace(**{**vars(options), "stage": last, "steps": None, "batch": None, "shift": None})
    return _evaluate(part, device)


def _speed(options: argparse.Namespace, device: torch.device) -> bool:
    if options.part == "vae":
        vae_speed(device, options.seconds, options.work)
    elif options.part == "attention":
        attention_speed(device)
    else:
        stage_speed(device, options.seconds, options.work, compiled=options.compile, attention=options.attention)
    return True


_COMMANDS = {
    **dict.fromkeys(("vae", "decoder"), _vae),
    "text": _text,
    **dict.fromkeys(STAGES, _stage),
    "all": _all,
    "warm": _warm,
    "evaluate": _evaluate,
    "reconstruct": _reconstruct,
    "export": _export,
    "speed": _speed,
}


def _loop(name: str, options: argparse.Namespace) -> LoopConfig:
    """The stage's defaults with what the command line changes; its length in minutes unless in steps."""
    names = ("steps", "batch", "learning_rate", "max_minutes", "seed")
    given: dict[str, Any] = {field: getattr(options, field) for field in names if getattr(options, field) is not None}
    given.setdefault("batch", batch_of(name, world()))
    if options.steps is None:
        given["fit_minutes"] = MINUTES[name] * options.scale
    begins = beginning_of(options.work, name)
    given.setdefault("seed", begins.seed)
    again = begins.again and name in STAGES
    if again:
        given["taught_rate"] = 1.0  # by now the rest is trained as well
    loop, share = LOOPS[name], rate_share(name, given["batch"]) * (AGAIN if again else 1.0)
    given.setdefault("learning_rate", loop.learning_rate * share)
    given["matrix_learning_rate"] = loop.matrix_learning_rate * share
    return dataclasses.replace(loop, save_seconds=120.0, print_seconds=15.0, **given)


def _plan(text: str) -> list[tuple[str, float | None]]:
    """Stages with their minutes, as ``vae:5.5,small,full``."""
    found = []
    for part in text.split(","):
        name, _, minutes = part.partition(":")
        if name not in ORDER:
            raise argparse.ArgumentTypeError(f"no stage is called {name!r}: {', '.join(ORDER)}")
        found.append((name, float(minutes) if minutes else None))
    return found


def _channels(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.train_world", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in _COMMANDS:
        command = commands.add_parser(name)
        command.add_argument("--work", type=Path, default=Path(".work/world"), help="checkpoints (%(default)s)")
        command.add_argument("--device", help="cuda or cpu; a GPU if there is one")
        command.add_argument("--seed", type=int, help="by default 0, or one that no stage of the earlier model had")
        command.add_argument("--steps", type=int, help="training steps, instead of minutes; sampling steps")
        command.add_argument("--batch", type=int, help="of all processes together")
        command.add_argument("--learning-rate", type=float, help="peak of AdamW's; Muon keeps its own")
        command.add_argument("--scale", type=float, default=1.0, help="factor on the minutes of the recipe")
        command.add_argument("--max-minutes", type=float, help="stop a stage then, with a checkpoint")
        command.add_argument("--vae-channels", type=_channels, help="widths of the VAE's levels, as 8,16,64,64")
        command.add_argument("--start-from", type=Path, help="an exported folder to go on from")
        command.add_argument("--stages", type=_plan, default=",".join(USUAL), help="all, warm: NAME[:MINUTES],...")
        command.add_argument("--guidance", type=float, help="weight of the guidance that a stage trains in")
        command.add_argument("--compile", action="store_true", help="compile the repeated blocks")
        command.add_argument("--no-benchmark", action="store_true", help="don't let cuDNN try out its convolutions")
        command.add_argument("--deadline-minutes", type=float, help="all: end then; the last stage takes what is left")
        command.add_argument("--no-evaluation", action="store_true", help="all: don't evaluate the last stage")
        command.add_argument("--attention", choices=("auto", "flash", "cudnn"), help="instead of the recipe's")
        command.add_argument("--eval-every-minutes", type=float, help="sample and judge 16 clips now and then")
        command.add_argument("--stage", choices=(TEXT_STAGE, *STAGES), default="full", help="whose averaged weights")
        command.add_argument("--out", type=Path, required=name == "export", help="folder to write")
        command.add_argument("--folder", type=Path, help="an exported folder, instead of --work's checkpoint")
        command.add_argument("--shift", type=float, help="evaluate: of the sampling steps; no card is written")
        command.add_argument("--limit", type=int, help="evaluate, reconstruct: only so many scenes")
        command.add_argument("--truth", action="store_true", help="reconstruct: judge the drawn clips themselves")
        command.add_argument(
            "--part", choices=("vae", "stages", "attention"), default="vae", help="speed: what is measured"
        )
        command.add_argument("--seconds", type=float, default=20.0, help="speed: for each measurement")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

"""Trains the transformer and its text encoders on clips of several sizes, by the loss of ``flow``."""

import contextlib
import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from scripts.tiny_world.plan import held_out_scenes, spread
from scripts.train_world.autoencoder import load_vae
from scripts.train_world.checkpoint import generator_at, load_modules, module_tensors
from scripts.train_world.earlier import TEXT_STAGE, first_weights, has_blocks, vae_folder
from scripts.train_world.evaluate import judged, shares_of
from scripts.train_world.flow import flow_loss
from scripts.train_world.loop import Loop, LoopConfig
from scripts.train_world.mixed_pool import MixedPool
from scripts.train_world.network import (
    BACKENDS,
    TransformerConfig,
    block_matrices,
    build_modules,
    prepare_for_training,
    set_stride,
    taught_parameters,
)
from scripts.train_world.parallel import barrier, rank, share, stream
from scripts.train_world.recipe import WorldStage
from scripts.train_world.sampling import assemble_pipeline


def train_stage(
    config: TransformerConfig,
    stage: WorldStage,
    loop_config: LoopConfig,
    work: Path,
    device: torch.device,
) -> bool:
    """Train one stage, resuming what ``work/<stage>`` holds, or starting from averaged weights: those of the last of
    the stages ``after`` that ``work`` trained, or those of the model in ``work/earlier``.

    Returns:
        True if the schedule came to its end.

    Raises:
        FileNotFoundError: the stage comes after others, and there are no weights of theirs.
    """
    vae = load_vae(vae_folder(work), device)
    modules, text = build_modules(config, loop_config.seed)
    averaged = prepared(modules, stage, device)
    geometry = stage.sizes[0].geometry
    extra = _facts(config, stage)
    parts = {"matrices": block_matrices(modules), "taught": taught_parameters(modules)}
    loop = Loop(modules, averaged, loop_config, work / stage.name, extra, **parts)
    if not loop.resume():
        start = first_weights(work, stage.after)
        if start is not None and (stage.after == (TEXT_STAGE,) or has_blocks(start)):
            if stage.after == (TEXT_STAGE,):  # which may have been the first
                start = {**module_tensors(modules), **start}
            load_modules(modules, start)
            load_modules(averaged, start)
        elif stage.after:
            raise FileNotFoundError(f"no weights in {work}: train the stage {stage.after[-1]} first")
    if loop.progress() >= 1.0:
        return True
    pool = MixedPool(stage.sizes, vae, text, loop_config.seed)
    pipe = assemble_pipeline(averaged, text, vae, stage.sampling_shift)
    batch_size = share(loop_config.batch)

    def loss_at(step: int) -> Tensor:
        batch = pool.batch(step, batch_size)
        guidance = stage.guidance if loop.progress() >= stage.guidance_from else 0.0
        generator = generator_at(loop_config.seed, step, stream("noise"), device)
        return flow_loss(modules, batch, stage.shift, generator, guidance=guidance, empty=pool.empty)

    evaluated = loop.seconds

    def every(seconds: float) -> None:
        nonlocal evaluated
        if stage.eval_minutes is None or seconds - evaluated < 60.0 * stage.eval_minutes:
            return
        evaluated = seconds
        results = judged(pipe, spread(held_out_scenes(), 16), geometry, steps=12, batch=8, seed=0)
        shares = ", ".join(f"{name} {right}/{count}" for name, (right, count) in shares_of(results).items())
        print(f"{stage.name} step {loop.step}: {shares}", flush=True)

    with attending(stage.attention):
        done = loop.run(loss_at, every if rank() == 0 else None)
    barrier()
    return done


def attending(name: str) -> contextlib.AbstractContextManager[None]:
    """Attention by the kernels of that name, as in ``network.BACKENDS``."""
    backends = BACKENDS[name]
    return contextlib.nullcontext() if backends is None else sdpa_kernel(backends, set_priority=True)


def _facts(config: TransformerConfig, stage: WorldStage) -> dict[str, Any]:
    """What a checkpoint says of its stage."""
    return {
        "transformer": asdict(config),
        "shift": stage.sampling_shift,
        "trained_shift": stage.shift,
        "guidance": stage.guidance,
        "stride": stage.stride,
        "geometry": asdict(stage.sizes[0].geometry),
        "sizes": [asdict(size.geometry) | {"share": size.share} for size in stage.sizes],
    }


def prepared(modules: dict[str, nn.Module], stage: WorldStage, device: torch.device) -> dict[str, nn.Module]:
    """Move the modules to the device and make them ready; returns copies for the averages."""
    for module in modules.values():
        module.to(device)
    averaged = {name: copy.deepcopy(module).requires_grad_(False) for name, module in modules.items()}
    for transformer in (modules["transformer"], averaged["transformer"]):
        set_stride(transformer, stage.stride)
    prepare_for_training(modules["transformer"], compiled=stage.compile, mixed=len(stage.sizes) > 1)
    return averaged

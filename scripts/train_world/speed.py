"""How fast a machine draws, encodes and trains: what the recipe's sizes are chosen by."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from scripts.tiny_world.draw import draw
from scripts.tiny_world.plan import extent_of, plan_clips
from scripts.train_world.autoencoder import VaeConfig, build_vae
from scripts.train_world.loop import LoopConfig
from scripts.train_world.network import build_modules
from scripts.train_world.pool import Geometry
from scripts.train_world.recipe import LOOPS, MODEL, STAGES, VAE_STAGE, VaeStage
from scripts.train_world.transformer import attending, train_stage
from scripts.train_world.vae import train_vae


def vae_speed(device: torch.device, seconds: float, work: Path) -> None:
    """Print clips a second for drawing, and for training VAEs of two widths at two sizes, without and with cuDNN's own
    trials; each measurement takes so long."""
    for geometry in (Geometry(33, 128, 128), Geometry(33, 256, 256)):
        _draw_speed(geometry, device)
    for channels in ((8, 16, 64, 64), VAE_STAGE.model.channels):
        model = dataclasses.replace(VAE_STAGE.model, channels=channels)
        print(f"vae {channels}: {sum(p.numel() for p in build_vae(model).parameters()) / 1e6:.2f} M parameters")
        for geometry in (VAE_STAGE.small[0], VAE_STAGE.full[0]):
            for benchmark in (False, True):
                torch.backends.cudnn.benchmark = benchmark
                _vae_speed(model, geometry, work, device, seconds)


def stage_speed(device: torch.device, seconds: float, work: Path, *, compiled: bool, attention: str | None) -> None:
    """Print clips a second of each stage of the transformer at its usual size; each trains so long, from nothing."""
    modules, _ = build_modules(MODEL, 0)
    for name, module in modules.items():
        print(f"{name}: {sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters", flush=True)
    any_vae = dataclasses.replace(_short("vae", seconds, 16), steps=10, max_minutes=None)
    train_vae(VAE_STAGE, any_vae, work, device)
    for stage in STAGES.values():
        size = stage.sizes[0]
        alone = dataclasses.replace(
            stage,
            name=f"{stage.name}-alone",
            sizes=(dataclasses.replace(size, share=1.0, pool=dataclasses.replace(size.pool, size=256, chunk=64)),),
            after=(),
            compile=compiled,
            attention=attention or stage.attention,
        )
        print(f"{stage.name}, a quarter of the batch:", flush=True)
        loop = dataclasses.replace(_short(stage.name, seconds, 4), steps=100_000, warmup=LOOPS[stage.name].warmup)
        train_stage(MODEL, alone, loop, work, device)


def attention_speed(device: torch.device) -> None:
    """Print what attention takes in the last stage at each of its sizes, by flash attention and by cuDNN, forward and
    backward, a quarter of the batch; and the first time at a length, when cuDNN plans."""
    stage, batch = STAGES["full"], max(1, LOOPS["full"].batch // 4)
    for size in stage.sizes:
        g = size.geometry
        cells = ((g.frames - 1) // 4 + 1) * (g.height // 8) * (g.width // 8)
        for name in ("flash", "cudnn"):
            with attending(name):
                first, later = [], []
                for text in (12, 16, 20):
                    once = _attention(batch, cells + text, device)
                    first.append(_seconds(once, device, repeats=1, warm=False))
                    later.append(_seconds(once, device))
            longest = 1e3 * (max(first) - min(later))
            print(f"{g} {name}: {1e3 * min(later):.2f} ms; {longest:.0f} ms more at a new length", flush=True)


def _attention(batch: int, tokens: int, device: torch.device) -> Callable[[], None]:
    shape = (batch, MODEL.heads, tokens, MODEL.head_dim)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    query, key, value = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))

    def once() -> None:
        out = F.scaled_dot_product_attention(query, key, value)
        torch.autograd.grad(out, (query, key, value), torch.ones_like(out))

    return once


def _draw_speed(geometry: Geometry, device: torch.device) -> None:
    plan = plan_clips(32, 0, extent_of(geometry.height, geometry.width))

    def once() -> None:
        draw(plan, geometry.frames, geometry.height, geometry.width, device)

    each = _seconds(once, device)
    began = time.monotonic()
    plan_clips(256, 1)
    planned = 256 / (time.monotonic() - began)
    print(f"draw {geometry}: {32 / each:.0f} clips/s; planned on the CPU: {planned:.0f} clips/s", flush=True)


def _seconds(run: Callable[[], None], device: torch.device, repeats: int = 5, *, warm: bool = True) -> float:
    if warm:
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.monotonic()
    for _ in range(repeats):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.monotonic() - began) / repeats


def _short(stage: str, seconds: float, share: int) -> LoopConfig:
    base = LOOPS[stage]
    batch = max(1, base.batch // share)
    steps = max(2, base.warmup // 4)
    return dataclasses.replace(base, batch=batch, steps=steps, warmup=1, max_minutes=seconds / 60.0, print_seconds=2.0)


def _vae_speed(model: VaeConfig, geometry: Geometry, work: Path, device: torch.device, seconds: float) -> None:
    stage = VaeStage((geometry,), (geometry,), full_from=2.0, full_batch=1.0, model=model)
    benchmark = torch.backends.cudnn.benchmark
    name = f"vae-{'-'.join(map(str, model.channels))}-{geometry.height}-{benchmark}"
    print(f"{name}, a quarter of the batch:", flush=True)
    loop = dataclasses.replace(_short("vae", seconds, 4 if geometry.height < 200 else 16), steps=100_000)
    train_vae(stage, loop, work / name, device)

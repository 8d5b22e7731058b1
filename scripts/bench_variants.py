# ruff: noqa
"""Variants that are not in the library yet: summaries in a pass of their own, probes' keys in parts, orders of rows.

    PYTHONPATH=.:kernels python -m scripts.bench_variants

Differences and errors come before times; in a pass of its own (``new``) and in the list's loop (``old``) in one run.
"""

import time
from contextlib import contextmanager
from functools import partial

import torch

import adaspa_kernels
from adaspa_cli.attention import TokenLayout, dense, resolve, split_keys
from adaspa_cli.attention import repair as rep
from adaspa_kernels import hopper_block_sparse as hbs
from adaspa_kernels import hopper_remainder as hr
from adaspa_kernels import schedule as sch
from adaspa_kernels import summaries as su
from scripts import bench_kernels as bk
from scripts import bench_low_density as bl
from scripts.bench_kernels import DEVICE, measure

bk.SUSTAINED_SECONDS = 0.15
T0 = time.time()


def say(name, call, flops=0, repeats=5):
    try:
        a, sp, s = measure(call, repeats)
    except Exception as e:
        print(f"{name:<56} FAILED {type(e).__name__} {str(e)[:150]}", flush=True)
        return 0.0
    print(
        f"{name:<56}{a:9.3f} ms {sp:6.1%} sustained {s:9.3f}"
        + (f" {flops / a / 1e9:6.0f} {flops / s / 1e9:5.0f} TF" if flops else ""),
        flush=True,
    )
    return a


def attend(separate, x, kept, pooled, path="hopper"):
    hr.SEPARATE = separate
    return adaspa_kernels.block_sparse_attention(
        x.q,
        x.k,
        x.v,
        kept.counts,
        kept.indices,
        key_blocks=kept.key_blocks,
        block_size=kept.block_size,
        scale=x.scale,
        summaries=pooled,
        path=path,
    )


def remainder(D, heads, tokens, video, densities):
    bk.HEADS = heads
    x = bk.inputs(tokens, D)
    for density in densities:
        kept = bl.budget(tokens, heads, density)
        pooled = adaspa_kernels.summarise(x.k, x.v, kept.counts, kept.indices, block_size=kept.block_size, video=video)
        o = attend(True, x, kept, pooled)
        n = attend(False, x, kept, pooled)
        print(
            "new/old difference",
            float((o[0].float() - n[0].float()).norm() / n[0].float().norm()),
            "lse",
            float((o[1] - n[1]).abs().max()),
            float((o[2] - n[2]).abs().max()),
            "error vs float64",
            bl.attention_error(x, kept, pooled, *o[:2]),
            bl.attention_error(x, kept, pooled, *n[:2]),
        )
        runs = [attend(True, x, kept, pooled)[0] for _ in range(4)]
        print("bitwise equal runs", all(torch.equal(runs[0], r) for r in runs[1:]))
        name = f"D={D} H={heads} {float(kept.density().mean()):.1%}"
        tiles = pooled.words.shape[-1] // 4
        fl = 4.0 * tokens * tiles * 128 * D * heads
        p = say(name + " sparse", partial(attend, True, x, kept, None))
        b = say(name + " sparse+summaries, old", partial(attend, False, x, kept, pooled))
        a = say(name + " sparse+summaries, new", partial(attend, True, x, kept, pooled))
        print(f"{'':30} added: old {b - p:.3f}, new {a - p:.3f}", flush=True)
        out, lse = o[0].clone(memory_format=torch.preserve_format), o[2]
        say(
            name + " add_summaries alone",
            lambda: hr.add_summaries(x.q, out, lse, pooled, key_tokens=tokens, block=64, scale=x.scale),
            fl,
        )
        ring = hr.RING_BYTES
        hr.RING_BYTES = ring * 5 // 6
        say(
            name + " add_summaries, fewer slots",
            lambda: hr.add_summaries(x.q, out, lse, pooled, key_tokens=tokens, block=64, scale=x.scale),
            fl,
        )
        hr.RING_BYTES = ring
        fixed = hr.keeps_reference
        hr.keeps_reference = lambda _: False
        say(
            name + " add_summaries, online",
            lambda: hr.add_summaries(x.q, out, lse, pooled, key_tokens=tokens, block=64, scale=x.scale),
            fl,
        )
        hr.keeps_reference = fixed
        say(name + " means", lambda: su.block_means(x.k, x.v, 64))
        say(name + " words", lambda: su.closed_words(kept.counts, kept.indices, kept.key_blocks, video))
    return x, kept


def repair_parts(x, kept, layout):
    backend = resolve("triton", DEVICE)
    out = attend(True, x, kept, None)[0]
    print(
        "dense choice",
        backend.dense(x.q[:, :, :128].contiguous(), x.k, x.v, x.scale)[0].shape,
        dense.describe(x.q, x.k)["kernel"],
    )
    for probes in (64, 128):
        rows = rep.probe_rows(layout, probes, DEVICE)
        q = x.q[:, :, rows]
        say(f"probes {probes}: gather q", lambda: x.q[:, :, rows])
        split_of, split_keys.parts_of = split_keys.parts_of, lambda *_: 1
        exact = backend.dense(q, x.k, x.v, x.scale)[0]
        say(f"probes {probes}: dense, chosen", lambda: backend.dense(q, x.k, x.v, x.scale))
        split_keys.parts_of = split_of
        for parts in (5, 11, 16):
            e = split_keys.split_attention(q, x.k, x.v, x.scale, parts)[0]
            print("   split", parts, "difference", float((e.float() - exact.float()).norm() / exact.float().norm()))
            say(
                f"probes {probes}: dense, split {parts}",
                lambda: split_keys.split_attention(q, x.k, x.v, x.scale, parts),
                repeats=3,
            )
        there = out[:, :, rows].float()
        say(f"probes {probes}: gather out", lambda: out[:, :, rows].float())
        target = exact.float() - there
        fit = rep._Fit.of(there, target, 30.0)
        say(f"probes {probes}: fit", lambda: rep._Fit.of(there, target, 30.0))
        f = there - there.mean(2, keepdim=True)
        g = f @ f.mT + 30 * torch.eye(f.shape[2], device=DEVICE)
        say(f"probes {probes}: cholesky_ex", lambda: torch.linalg.cholesky_ex(g)[0])
        low = torch.linalg.cholesky_ex(g)[0]
        eye = torch.eye(f.shape[2], device=DEVICE).expand_as(low)
        say(f"probes {probes}: solve_triangular", lambda: torch.linalg.solve_triangular(low, eye, upper=False))
        video = range(layout.video_start, layout.video_start + layout.video_tokens)
        say(
            f"probes {probes}: apply",
            lambda: backend.affine(out, fit.mean, fit.factor, fit.weight, fit.intercept, kept, video),
        )
        say(
            f"probes {probes}: repair",
            lambda: rep.repair(
                x.q,
                x.k,
                x.v,
                out,
                kept,
                layout,
                probes=probes,
                ridge=30.0,
                scale=x.scale,
                dense=backend.dense,
                affine=backend.affine,
            ),
        )
    say("copy of out", lambda: out.clone(memory_format=torch.preserve_format))


@contextmanager
def slack(part):
    """Rounds begin when all but a part of the round before is copied: the counter of copied rows begins above zero."""
    zeros = torch.zeros

    def begun(*args, **options):
        x = zeros(*args, **options)
        if args == (5,):
            x[1] = round(part * 264)
        return x

    torch.zeros = begun
    try:
        yield
    finally:
        torch.zeros = zeros


def orders():
    bk.HEADS = 12
    tokens = bk.TOKENS[128]
    x = bk.inputs(tokens, 128)
    work = 4.0 * tokens * tokens * 128 * 12

    def falling(counts, key_blocks, teams):
        lengths = counts.flatten(0, 1).clamp(0, key_blocks).long()
        heads = torch.arange(len(lengths), device=counts.device)[:, None]
        long = lengths * lengths.numel() > lengths.sum() * sch.LONG
        keys = torch.where(long, 0, heads + 1) * (key_blocks + 1) + key_blocks - lengths
        order = torch.argsort(keys.flatten(), stable=True)
        lengths = lengths.flatten()[order]
        later = torch.cat([lengths[teams:], lengths[-1:].expand(min(teams, len(lengths)))])
        return order | lengths << 32 | (lengths * 4 > later * 5).long() << 62

    def natural(counts, key_blocks, teams):
        lengths = counts.flatten(0, 1).clamp(0, key_blocks).long()
        heads = torch.arange(len(lengths), device=counts.device)[:, None].expand_as(lengths)
        long = lengths * lengths.numel() > lengths.sum() * sch.LONG
        order = torch.argsort(torch.where(long, 0, heads + 1).flatten(), stable=True)
        return order | lengths.flatten()[order] << 32

    def nowait(counts, key_blocks, teams):
        return sch.schedule(counts, key_blocks, teams) | (1 << 62)

    for density in (0.05, 0.1):
        for kind in ("budget", "budget without text", "uniform"):
            kept = bk.mask("uniform", tokens, 64, density) if kind == "uniform" else bl.budget(tokens, 12, density)
            if kind == "budget without text":
                kept.counts[:, -4:] = kept.counts[:, :-4].float().mean().int()
            share = float(kept.density().mean())

            def call():
                return attend(True, x, kept, None)

            name = f"{kind} {share:.1%} "
            say(name + "main", call, work * share)
            if kind == "uniform":
                continue
            for part in (0.125, 0.25, 0.5):
                with slack(part):
                    say(name + f"slack {part}", call, work * share)
            for f in (falling, natural, nowait):
                order = f(kept.counts[None], kept.key_blocks, 264)
                before = hbs.kept_schedule
                hbs.kept_schedule = lambda *_: order
                say(name + f.__name__, call, work * share)
                if f is natural:
                    with slack(0.25):
                        say(name + "natural, slack 0.25", call, work * share)
                hbs.kept_schedule = before
            step = hbs.keeps_step
            hbs.keeps_step = lambda _: False
            say(name + "no rounds", call, work * share)
            hbs.keeps_step = step


if __name__ == "__main__":
    print(torch.cuda.get_device_name(), torch.__version__, bk.gpu_state())
    layout = TokenLayout(33, 45, 80, 256, "last")
    x, kept = remainder(128, 24, layout.tokens, layout.video_blocks(64), [0.05])
    print("seconds", time.time() - T0, flush=True)
    repair_parts(x, kept, layout)
    del x
    print("seconds", time.time() - T0, flush=True)
    remainder(64, 12, bk.TOKENS[64], range(-(-bk.TOKENS[64] // 64) - 4), [0.05])
    print("seconds", time.time() - T0, flush=True)
    orders()
    print("seconds", time.time() - T0, bk.gpu_state(), flush=True)

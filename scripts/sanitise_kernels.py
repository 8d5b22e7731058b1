"""All GPU kernels under compute-sanitizer, at small sizes: reads and writes out of bounds, and races in shared memory.

    PYTHONPATH=.:kernels python -m scripts.sanitise_kernels --json sanitised.json

A case is a group of kernels, with one path and head dimension, in a process of its own under each tool: ``memcheck``
finds addresses that belong to no tensor (PyTorch's pool is off, so that each has an allocation of its own),
``racecheck`` two accesses to shared memory of which one is a write and no barrier that it knows stands between.
``initcheck`` and ``synccheck`` may be asked for. What a tool reports is counted by kernel and kind; whole reports go to
``--logs``. Kernels are compiled before, without a tool, because they are kept on disk.

The results of these runs are not looked at: the tests of ``tests/kernels`` do that.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import adaspa_kernels
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.layout import ceil_div

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
TOKENS, HEADS = 517, 2  # the last block is ragged
SECONDS = 120  # of one case under one tool
_REPORTS = re.compile(r"^=+ +(?:Error: |Warning: )?(Invalid|Race reported|Uninitialized|Barrier error|Misaligned)(.*)$")
_KERNEL = re.compile(r"(\w+_kernel|nvjet_\w+|\w+)\+0x[0-9a-f]+")
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


class Report(NamedTuple):
    """What a tool said of a case: its own count, and its reports by what they name."""

    found: int | None  # None: it did not come to an end
    by_kernel: dict[str, int]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _rows(head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    q, k, v = (torch.randn(1, TOKENS, HEADS, head_dim, device=_device()).to(dtype).transpose(1, 2) for _ in range(3))
    return q, k, v


def _mask(block: int) -> BlockMask:
    """Lists of many lengths: nothing, one block, everything, and half."""
    blocks = ceil_div(TOKENS, block)
    kept = torch.rand(HEADS, blocks, blocks, device=_device()) < 0.5
    kept[0, 0], kept[1, 0] = False, True
    kept[0, 1] = False
    kept[0, 1, -1] = True
    return BlockMask.from_bool(kept, (block, block))


def _sparse(path: str, head_dim: int, block: int, pooled: bool = False, rising: bool = False) -> None:
    q, k, v = _rows(head_dim)
    mask = _mask(block)
    if rising:  # all scores of the blocks before the last two are far above theirs: rows are computed again
        q[..., 0] = 128
        k[:, :, : -2 * block, 0], k[:, :, -2 * block :, 0] = 16, 0
    lists = (mask.counts, mask.indices)
    size, video = mask.block_size, range(mask.key_blocks)
    summaries = adaspa_kernels.summarise(k, v, *lists, block_size=size, video=video) if pooled else None
    adaspa_kernels.block_sparse_attention(
        q, k, v, *lists, key_blocks=mask.key_blocks, block_size=size, scale=head_dim**-0.5, summaries=summaries,
        path=path,
    )  # fmt: skip


def _sums(path: str, head_dim: int, block: int) -> None:
    q, k, _ = _rows(head_dim)
    lse = torch.zeros(1, HEADS, TOKENS, device=_device())
    for row_stride in (1, 8):
        adaspa_kernels.block_sums(
            q, k, lse, block_size=(block, block), scale=0.1, row_stride=row_stride, path=path
        )  # fmt: skip


def _select() -> None:
    mask = _mask(64)
    sums = torch.rand(1, HEADS, mask.query_blocks, mask.key_blocks, device=_device())
    video = range(mask.key_blocks - 2)
    weighed = adaspa_kernels.weigh_rows(sums, video, video, (1, 2, 4))
    chosen = torch.full((1, HEADS), 4, device=_device())
    counts, indices = adaspa_kernels.pack_rows(sums, video, video, weighed, chosen, torch.int16)
    adaspa_kernels.listed_mass(sums[0], counts[0], indices[0])
    levels = torch.arange(15, dtype=torch.int32, device=_device())
    adaspa_kernels.count_above(sums[0], video, video, levels)
    for flags in (mask.to_bool(), mask.to_bits()):
        words = flags.dtype == torch.int32
        rows = flags.flatten(0, 1)
        listed = adaspa_kernels.count_flags(rows, mask.key_blocks)
        places = adaspa_kernels.list_flags(rows, listed, mask.key_blocks, mask.key_blocks, torch.int16)
        adaspa_kernels.flag_lists(listed, places, mask.key_blocks, words=words)


def _around() -> None:
    """What comes before attention and after it: norm with rotation, FP8 rows, and the repair's map."""
    q, *_ = _rows(64)
    x = q.transpose(1, 2)
    tables = tuple(torch.rand(TOKENS - 7, 32, device=_device()) for _ in range(2))
    adaspa_kernels.norm_rope(
        x, torch.empty_like(x), norm="rms", weight=torch.ones(64, device=_device()), eps=1e-6,
        rotation=(tables[0], tables[1]),
    )  # fmt: skip
    for columns in (96, 3072):
        adaspa_kernels.quantise_rows(torch.randn(33, columns, device=_device()).to(q.dtype), gelu_from=32)
    line, matrix = (torch.rand(1, HEADS, n, 64, device=_device()) for n in (1, 64))
    mask = _mask(64)
    adaspa_kernels.add_affine(
        q, line, line, matrix, line, mask.counts, key_blocks=mask.key_blocks, block=64, video=range(3, TOKENS - 5)
    )


def _attention(path: str, head_dim: int) -> None:
    for block in (64, 128):
        _sparse(path, head_dim, block)
        _sparse(path, head_dim, block, pooled=True)
        _sparse(path, head_dim, block, rising=True)
        if path == "portable" or block == 64:
            _sums(path, head_dim, block)


def _hopper_control() -> None:
    from scripts import racecheck_control

    racecheck_control.run()


def cases() -> dict[str, Callable[[], None]]:
    """What runs, by name. The control has no race: what is reported there, the tool reports of any mbarrier."""
    found: dict[str, Callable[[], None]] = {
        "masks": _select, "around attention": _around, "hopper control": _hopper_control
    }  # fmt: skip
    for path in ("hopper", "portable"):
        for head_dim in adaspa_kernels.HEAD_DIMS:
            found[f"{path} D={head_dim}"] = partial(_attention, path, head_dim)
    return found


def read_report(text: str) -> Report:
    """Count what a tool reported; a case that failed or never ended has no summary."""
    by_kernel: Counter[str] = Counter()
    lines = text.splitlines()
    for place, line in enumerate(lines):
        if report := _REPORTS.match(line):
            named = _KERNEL.findall(" ".join(lines[place : place + 3]))
            by_kernel[f"{report[1].lower()}: {' / '.join(dict.fromkeys(named)) or 'unknown'}"] += 1
    summary = _SUMMARY.findall(text)
    return Report(int(summary[-1]) if summary else None, dict(by_kernel))


def sanitise(sanitizer: str, tool: str, case: str, log: Path | None) -> Report:
    """Run one case under one tool."""
    command = [sanitizer, "--tool", tool, sys.executable, "-m", "scripts.sanitise_kernels", "--run", case]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Report(None, {})
    if log is not None:
        log.mkdir(parents=True, exist_ok=True)
        (log / f"{tool}-{case.replace(' ', '-').replace('=', '')}.txt").write_text(done.stdout)
    return read_report(done.stdout) if done.returncode == 0 else read_report(done.stdout)._replace(found=None)


def find_sanitizer() -> str | None:
    """compute-sanitizer on the path, or where CUDA puts it."""
    places = sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))
    return shutil.which("compute-sanitizer") or (str(places[-1]) if places else None)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=["memcheck", "racecheck"])
    parser.add_argument("--cases", nargs="+", default=[], help="only those whose name starts with one of these")
    parser.add_argument("--jobs", type=int, default=6, help="processes at a time")
    parser.add_argument("--sanitizer", default=find_sanitizer(), help="compute-sanitizer, if it is not found")
    parser.add_argument("--logs", type=Path, help="folder for the tools' whole reports")
    parser.add_argument("--json", type=Path, help="write all rows there")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # one case, in the process that a tool watches
    return parser.parse_args()


def main() -> int:
    """Print a line for each case and tool; 1 where anything was found or did not end."""
    options = arguments()
    if options.run:
        torch.manual_seed(0)
        cases()[options.run]()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return 0
    if not torch.cuda.is_available() or options.sanitizer is None:
        print("sanitise_kernels needs a CUDA device and compute-sanitizer", file=sys.stderr)
        return 1
    chosen = {name: call for name, call in cases().items() if name.startswith(tuple(options.cases or [""]))}
    for call in chosen.values():
        call()
    torch.cuda.synchronize()
    rows = []
    both = [(tool, name) for tool in options.tools for name in chosen]
    with ThreadPoolExecutor(options.jobs) as pool:
        reports = pool.map(lambda pair: sanitise(options.sanitizer, *pair, options.logs), both)
        for (tool, name), (found, by_kernel) in zip(both, reports, strict=True):
            rows.append({"tool": tool, "case": name, "found": found, "by_kernel": by_kernel})
            print(f"{tool:<11}{name:<20}{'did not end' if found is None else found}  {by_kernel or ''}", flush=True)
    if options.json:
        command = shlex.join(["python", "-m", "scripts.sanitise_kernels", *sys.argv[1:]])
        options.json.write_text(json.dumps({"command": command, "rows": rows}, indent=2) + "\n")
    return int(any(row["found"] != 0 for row in rows))


if __name__ == "__main__":
    sys.exit(main())

"""Every flag that sets something about a run: its names, its type, its help and its panel, once for all commands.

A command names those that it takes (:func:`adaspa_cli.commands.command.command`), and may say more about one of them
with :meth:`Flag.but`. Imports nothing heavy: `adaspa --help` must not wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaspa_cli.commands.completion import among
from adaspa_cli.config.caches import CACHES
from adaspa_cli.config.names import (
    BACKENDS,
    BUDGETS,
    DTYPES,
    FALLBACKS,
    LINEARS,
    OFFLOADS,
    REMAINDERS,
    REPAIRS,
    SELECTIONS,
    TOKEN_ORDERS,
    WEIGHTS_DTYPES,
)
from adaspa_cli.config.presets import DEFAULT_METHOD, PAPERS_METHOD, preset_names
from adaspa_cli.errors import shortened

if TYPE_CHECKING:
    from adaspa_cli.jobs.shard import Shard

WHAT, METHOD, SAMPLING, MACHINE, OUTPUT = "What to show", "Method", "Sampling", "Model and machine", "Output"


@dataclass(frozen=True)
class Flag:
    """A flag whose value is None, or an empty list, where it is not given.

    Attributes:
        names: as they are written, ``--no-`` form and short form included; the first one gives the key.
        type: of its value; a ``list`` may be repeated.
        text: the help.
        panel: of the help; None is the common one.
        default: what holds if neither the flag nor a preset says otherwise, for the help.
        metavar: placeholder of the value in the help, instead of its type.
        values: those that the shell completes; others may be allowed too.
    """

    names: tuple[str, ...]
    type: Any
    text: str
    panel: str | None
    default: str | None = None
    metavar: str | None = None
    values: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The setting's key in YAML files, and the parameter's name."""
        return self.names[0].removeprefix("--").partition("/")[0].replace("-", "_")

    def but(self, **changed: Any) -> Flag:
        """The same flag with other help."""
        return dataclasses.replace(self, **changed)

    @property
    def annotation(self) -> Any:
        """What Typer makes the flag from."""
        shown = f"{self.text} (default: {self.default})" if self.default else self.text
        own = _PARSED.get(self.type, {})  # what Typer says of a wrong number does not tell which one was given
        option = typer.Option(
            *self.names,
            help=shown,
            rich_help_panel=self.panel,
            metavar=self.metavar or own.get("metavar"),
            parser=own.get("parser"),
            autocompletion=among(self.values) if self.values else None,
            show_default=False,
        )
        return Annotated[self.type | None, option]


def _whole(text: str) -> int:
    with contextlib.suppress(ValueError):
        return int(text)
    raise typer.BadParameter(f"must be a whole number, got '{shortened(text, 60)}'")


def _number(text: str) -> float:
    with contextlib.suppress(ValueError):
        return float(text)
    raise typer.BadParameter(f"must be a number, got '{shortened(text, 60)}'")


def _path(text: str) -> Path:
    if text.strip():
        return Path(text)
    raise typer.BadParameter("must name a file or folder, and is empty; . is the current folder")


_PARSED: dict[Any, dict[str, Any]] = {
    int: {"parser": _whole, "metavar": "<int>"},
    list[int]: {"parser": _whole, "metavar": "<list[int]>"},
    float: {"parser": _number, "metavar": "<float>"},
    Path: {"parser": _path, "metavar": "<path>"},
}


def _flag(
    names: str,
    kind: Any,
    panel: str,
    text: str,
    default: str | None = None,
    metavar: str | None = None,
    values: Sequence[str] = (),
) -> Flag:
    return Flag(tuple(names.split()), kind, text, panel, default, metavar, tuple(values))


# --- how the work of a run is shared: no settings
def shard_option(what: str, more: str, *names: str, panel: str | None = None) -> Any:
    """The option ``--shard`` of a command that makes ``what``."""
    text = f"Make only share I of N of the {what}; auto reads I and N from torchrun or SLURM. {more}"
    return typer.Option("--shard", *names, metavar="I/N", rich_help_panel=panel, help=text)


def at_option(what: str, example: str, default: str, panel: str | None = None) -> Any:
    """The option ``--at-layers`` or ``--at-heads`` of a command that draws."""
    text = f"{what.capitalize()}, for example {example}. (default: {default})"
    return typer.Option(f"--at-{what}", metavar=what.upper(), rich_help_panel=panel, help=text)


RAY = typer.Option(
    "--ray",
    metavar="ADDRESS",
    rich_help_panel=MACHINE,
    help="Make videos on Ray workers (extra: ray): local starts Ray here, auto or an address joins a cluster.",
)
RAY_WORKERS = typer.Option(
    "--ray-workers",
    min=1,
    rich_help_panel=MACHINE,
    help="Number of Ray workers. (default: one per GPU)",
)


def parse_shard(text: str | None) -> Shard | None:
    """The share of ``--shard``; None if it was not given. Raises ConfigError if it cannot be read."""
    from adaspa_cli.jobs.shard import parse_shard as parse

    return None if text is None else parse(text, os.environ)


# --- what to show
PROMPT = _flag("--prompt -p", list[str], WHAT, "What the video shows. Repeatable.")
PROMPTS = _flag(
    "--prompts", Path, WHAT, "File with one prompt per line, or - for stdin. Lines that begin with # are skipped."
)
STRICT_PROMPT = _flag(
    "--strict-prompt/--no-strict-prompt",
    bool,
    WHAT,
    "Refuse words and sizes the model was not trained on, and prompts longer than it reads.",
)
NEGATIVE_PROMPT = _flag("--negative-prompt", str, WHAT, "What the video should not show.")
IMAGE = _flag("--image", Path, WHAT, "Picture that the video starts from, for image-to-video models.")
LAST_IMAGE = _flag("--last-image", Path, WHAT, "Picture that the video ends with.")
SEED = _flag("--seed -s", list[int], WHAT, "Seed of the noise. Repeatable.", default="0")

# --- method
METHOD_NAME = _flag(
    "--method",
    str,
    METHOD,
    ", ".join(preset_names("methods")) + ".",
    default=PAPERS_METHOD,
    values=preset_names("methods"),
)
SPARSITY = _flag(
    "--sparsity",
    str,
    METHOD,
    "Share of the video blocks left out, 0 to 1, or shares by step, for example 0:0.5,8%:0.7,20%:0.95.",
    metavar="SPARSITY",
)
SEARCH_STEPS = _flag(
    "--search-steps",
    str,
    METHOD,
    "Denoising steps at which masks are searched, numbered from 0, for example 10,30.",
    metavar="STEPS",
)  # read by Given
BLOCK_SIZE = _flag("--block-size", int, METHOD, "Tokens per block.")
HEAD_ADAPTIVE = _flag(
    "--head-adaptive/--no-head-adaptive", bool, METHOD, "Adapt the sparsity to the recall of each head."
)
LSE_CACHE = _flag(
    "--lse-cache/--no-lse-cache", bool, METHOD, "Reuse the first search's log-sum-exp (LSE) in later searches."
)
TOKEN_ORDER = _flag(
    "--token-order", str, METHOD, "Order of the video tokens: " + ", ".join(TOKEN_ORDERS) + ".", values=TOKEN_ORDERS
)
SELECTION = _flag(
    "--selection", str, METHOD, "Score that decides which blocks are kept: mass or output-error.", values=SELECTIONS
)
BUDGET = _flag(
    "--budget", str, METHOD, "What shares one budget of kept blocks: " + ", ".join(BUDGETS) + ".", values=BUDGETS
)
REMAINDER = _flag(
    "--remainder",
    str,
    METHOD,
    "drop: ignore left-out blocks; pooled: attend to one summary of each.",
    values=REMAINDERS,
)
REPAIR = _flag(
    "--repair", str, METHOD, "none; probes: correct all query rows by a few that attend densely.", values=REPAIRS
)
PROBES = _flag("--probes", int, METHOD, "Number of query rows that attend densely, with --repair probes.")
MAX_ERROR = _flag(
    "--max-error", float, METHOD, "Attention error above which a layer's next call is dense and searches a new mask."
)
SHARE_CFG_MASKS = _flag(
    "--share-cfg-masks/--no-share-cfg-masks",
    bool,
    METHOD,
    "Use the conditional branch's masks for both guidance branches.",
)
MASKS = _flag("--masks", Path, METHOD, "Use the masks of this file (adaspa search-masks) instead of a search.")
MASKS_FROM_START = _flag(
    "--masks-from-start/--no-masks-from-start",
    bool,
    METHOD,
    "Use the masks from the first step on, without dense warm-up.",
)
MASKS_MIN_RECALL = _flag(
    "--masks-min-recall", float, METHOD, "Lowest recall allowed for a loaded mask; measured per layer on this prompt."
)
MASKS_FALLBACK = _flag(
    "--masks-fallback",
    str,
    METHOD,
    "Below --masks-min-recall: search for a new mask, or warn and use the loaded one.",
    default="search",
    values=FALLBACKS,
)
CACHE = _flag(
    "--cache", str, METHOD, "Reuse results of earlier steps: " + ", ".join(CACHES) + ".", default="none", values=CACHES
)

# --- sampling
STEPS = _flag("--steps", int, SAMPLING, "Denoising steps.")
STEPS_PER_PHASE = _flag(
    "--steps-per-phase",
    int,
    SAMPLING,
    "With random weights: compute only N steps of each phase and estimate the others.",
)
HEIGHT = _flag("--height", int, SAMPLING, "Height in pixels.")
WIDTH = _flag("--width", int, SAMPLING, "Width in pixels.")
FRAMES = _flag("--frames", int, SAMPLING, "Number of frames.")
FPS = _flag("--fps", int, SAMPLING, "Frames per second.")
GUIDANCE_SCALE = _flag("--guidance-scale", float, SAMPLING, "Guidance scale of the model.")
GUIDANCE_SCALE_2 = _flag(
    "--guidance-scale-2", float, SAMPLING, "Wan 2.2: guidance scale of the second transformer (low noise)."
)
TRUE_CFG_SCALE = _flag(
    "--true-cfg-scale", float, SAMPLING, "HunyuanVideo: classifier-free guidance in two passes, if above 1."
)
FLOW_SHIFT = _flag("--flow-shift", float, SAMPLING, "Shift of the flow-matching scheduler.")

# --- model and machine
MODEL = _flag(
    "--model -m",
    str,
    MACHINE,
    ", ".join(preset_names("models")) + ", folder or hub id.",
    default="tiny",
    values=preset_names("models"),
)
WEIGHTS = _flag("--weights", str, MACHINE, "Folder or hub id with the weights of a named model.")
GPUS = _flag("--gpus", int, MACHINE, "Number of GPUs that compute one video together.", default="1")
CFG_PARALLEL = _flag(
    "--cfg-parallel/--no-cfg-parallel", bool, MACHINE, "Compute each guidance branch on half of the GPUs."
)
DTYPE = _flag("--dtype", str, MACHINE, "Dtype of the model: " + ", ".join(DTYPES) + ".", default="auto", values=DTYPES)
DEVICE = _flag(
    "--device",
    str,
    MACHINE,
    "Device to run on: auto, cpu, cuda, cuda:N.",
    default="auto",
    values=("auto", "cpu", "cuda"),
)
ATTENTION_BACKEND = _flag(
    "--attention-backend",
    str,
    MACHINE,
    "Attention kernels: " + ", ".join(BACKENDS) + ".",
    default="auto",
    values=BACKENDS,
)
LINEAR = _flag(
    "--linear",
    str,
    MACHINE,
    "Precision of the linear layers: " + ", ".join(LINEARS) + ".",
    default="model",
    values=LINEARS,
)
RANDOM_WEIGHTS = _flag(
    "--random-weights",
    bool,
    MACHINE,
    "Build the real architecture with random weights, to measure times without a download.",
)
LORA = _flag(
    "--lora", list[str], MACHINE, "LoRA: file or hub id, with an optional scale. Repeatable.", metavar="LORA[:SCALE]"
)
LORA_HIGH = _flag("--lora-high", list[str], MACHINE, "LoRA for the first of two transformers.", metavar="LORA[:SCALE]")
LORA_LOW = _flag("--lora-low", list[str], MACHINE, "LoRA for the second of two transformers.", metavar="LORA[:SCALE]")
WEIGHTS_DTYPE = _flag(
    "--weights-dtype",
    str,
    MACHINE,
    "Dtype in which the transformer is kept: " + ", ".join(WEIGHTS_DTYPES) + ".",
    default="model",
    values=WEIGHTS_DTYPES,
)
TRANSFORMER = _flag("--transformer", Path, MACHINE, "Take the transformer from this single file, safetensors or GGUF.")
LAYERS = _flag("--layers", int, MACHINE, "With random weights: build only N layers.")
COMPILE = _flag(
    "--compile/--no-compile",
    bool,
    MACHINE,
    "Run the transformer blocks through torch.compile; the first step compiles.",
)
OFFLOAD = _flag(
    "--offload",
    str,
    MACHINE,
    "Move weights off the GPU to save memory, at a cost in speed: " + ", ".join(OFFLOADS) + ".",
    default="none",
    values=OFFLOADS,
)
VAE_TILING = _flag("--vae-tiling/--no-vae-tiling", bool, MACHINE, "Decode in tiles, to save memory.")
VAE_FRAMEWISE = _flag("--vae-framewise/--no-vae-framewise", bool, MACHINE, "Decode in overlapping chunks of frames.")

# --- output
OUT = _flag("--out -o", Path, OUTPUT, "Folder for the videos.", default="videos")
DECODE = _flag(
    "--decode/--no-decode",
    bool,
    OUTPUT,
    "Decode to a video, or stop at latents.",
    default="decode, except with random weights",
)
LOSSLESS = _flag("--lossless/--no-lossless", bool, OUTPUT, "Also write NAME.lossless.mkv.")
COMPARE_WITH = _flag(
    "--compare-with",
    list[str],
    OUTPUT,
    "NAME.report.json of another run, to show beside this one on its page. Repeatable.",
    metavar="REPORT",
)
RESUME = _flag("--resume/--no-resume", bool, OUTPUT, "Skip videos that are complete in the folder.")

# --- settings by name
CONFIG = _flag("--config -c", Path, OUTPUT, "YAML file with settings; --print-config shows the format.")
SET = _flag(
    "--set",
    list[str],
    MACHINE,
    "Any other setting of adaspa generate, for example block_size=64. Repeatable.",
    metavar="KEY=VALUE",
)

GENERATE = (
    *(PROMPT, PROMPTS, STRICT_PROMPT, NEGATIVE_PROMPT, IMAGE, LAST_IMAGE, SEED),
    METHOD_NAME.but(default=f"{DEFAULT_METHOD}; with --masks {PAPERS_METHOD}"),
    *(SPARSITY, SEARCH_STEPS, BLOCK_SIZE, HEAD_ADAPTIVE, LSE_CACHE, SHARE_CFG_MASKS),
    *(TOKEN_ORDER, SELECTION, BUDGET, REMAINDER, REPAIR, PROBES, MAX_ERROR),
    *(MASKS, MASKS_FROM_START, MASKS_MIN_RECALL, MASKS_FALLBACK, CACHE),
    *(STEPS, STEPS_PER_PHASE, HEIGHT, WIDTH, FRAMES, FPS, GUIDANCE_SCALE, GUIDANCE_SCALE_2),
    *(TRUE_CFG_SCALE, FLOW_SHIFT),
    *(MODEL, WEIGHTS, DTYPE, DEVICE, ATTENTION_BACKEND, LINEAR, RANDOM_WEIGHTS, LAYERS, COMPILE, OFFLOAD),
    *(LORA, LORA_HIGH, LORA_LOW, WEIGHTS_DTYPE, TRANSFORMER, VAE_TILING, VAE_FRAMEWISE, GPUS, CFG_PARALLEL),
    *(OUT, DECODE, LOSSLESS, COMPARE_WITH, RESUME, CONFIG),
    SET.but(text="Any other setting, for example block_size=64. Repeatable."),
)

"""Writes the trained model as a folder that ``HunyuanVideoPipeline.from_pretrained`` loads, with a model card.

Weights are float16: they lie well inside its range and it rounds them eight times finer than bfloat16 would. They
load as float32 or bfloat16 alike. (Computing in float16 on a CPU is another matter; the model never needs it.)
"""

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline

from scripts.train_tiny.card import model_card
from scripts.train_tiny.checkpoint import (
    Tensors,
    load_group,
    load_modules,
    load_state,
    module_tensors,
    read_bundle,
    save_checkpoint,
    write_bundle,
)
from scripts.train_tiny.pool import Geometry
from scripts.train_tiny.sampling import assemble_pipeline
from scripts.train_tiny.transformer import TransformerConfig, build_modules, set_stride
from scripts.train_tiny.vae import in_one_piece, load_vae
from scripts.train_tiny.vocabulary import write_vocabulary

_SHARD = "15MB"
_LARGEST_FILE = 16_000_000
_LARGEST_FOLDER = 40_000_000
_VAE = "vae"


@dataclass(frozen=True)
class Trained:
    """A pipeline with averaged weights, the clip size it was trained at, and the state of its last stage."""

    pipe: HunyuanVideoPipeline
    geometry: Geometry
    state: dict[str, Any]


def load_trained(
    work: Path,
    stage: str,
    device: torch.device,
    corpus: Sequence[str] | None = None,
    vae: Path | None = None,
) -> Trained:
    """The pipeline of a stage's averaged weights, in float32, straight from its checkpoint.

    ``corpus``: the captions that the tokenizers were made from, if not those of this package. ``vae``: folder of the
    autoencoder, if not that of ``work``.

    Raises:
        FileNotFoundError: if the stage or the VAE has no checkpoint in ``work``.
    """
    state, averaged = load_state(work / stage), load_group(work / stage, "ema")
    if state is None or averaged is None:
        raise FileNotFoundError(f"no checkpoint of the stage '{stage}' in {work}")
    modules, text = build_modules(TransformerConfig.from_dict(state["transformer"]), state["seed"], corpus)
    load_modules(modules, averaged)
    for module in modules.values():
        module.to(device).eval()
    if state["stride"] != 1.0:  # has no place in the saved config: only the last stage is for export
        set_stride(modules["transformer"], state["stride"])
    autoencoder = load_vae(vae or work / "vae" / "model", device)
    return Trained(assemble_pipeline(modules, text, autoencoder, state["shift"]), Geometry(**state["geometry"]), state)


def export(
    work: Path,
    stage: str,
    out: Path,
    *,
    corpus: Sequence[str] | None = None,
    card: Callable[[Path, str, dict[str, int]], str] = model_card,
    words: Callable[[Path, Geometry], None] = write_vocabulary,
    vae: Path | None = None,
) -> None:
    """Write the pipeline folder ``out`` (replacing it) from a stage's averaged weights, and check its sizes.

    ``card`` gives the text of README.md, ``words`` writes the vocabulary, ``vae`` is as in :func:`load_trained`.

    Raises:
        ValueError: if a file exceeds 16 MB or the folder 40 MB.
    """
    trained = load_trained(work, stage, torch.device("cpu"), corpus, vae)
    pipe = trained.pipe
    partial = out.with_name(out.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        copy.deepcopy(getattr(pipe, name)).half().save_pretrained(partial / name, max_shard_size=_SHARD)
    _forget_origin(partial / "vae" / "config.json")
    pipe.tokenizer.save_pretrained(partial / "tokenizer")
    pipe.tokenizer_2.save_pretrained(partial / "tokenizer_2")
    pipe.scheduler.save_pretrained(partial / "scheduler")
    _write_index(pipe, partial / "model_index.json")
    words(partial, trained.geometry)
    (partial / "README.md").write_text(card(work, stage, _sizes(partial)))
    shutil.rmtree(out, ignore_errors=True)
    partial.replace(out)
    _check_sizes(out)


def bundle(work: Path, stage: str, out: Path, *, raw: bool = True) -> None:
    """Write what another machine needs to continue: VAE, averaged weights and, to continue training, the raw ones."""
    tensors: Tensors = {}
    state: dict[str, Any] = {"stage": stage}
    vae_folder = work / "vae" / "model"
    if (vae_folder / "config.json").is_file():
        vae = load_vae(vae_folder, torch.device("cpu"))
        tensors |= {f"model/{name}": value for name, value in module_tensors({_VAE: vae}).items()}
        state["vae_config"] = {name: value for name, value in vae.config.items() if not name.startswith("_")}
        state["vae_metrics"] = json.loads((vae_folder / "metrics.json").read_text())
    for group in ("ema", "raw") if raw else ("ema",):
        weights = load_group(work / stage, group)
        if weights is None:
            continue
        tensors |= {f"{group}/{name}": value for name, value in weights.items()}
    state["training"] = load_state(work / stage)
    state["evaluation"] = read_json(work / stage / "evaluation.json")
    paths = write_bundle(out, tensors, state)
    print(
        f"bundle of {len(paths)} files, {sum(p.stat().st_size for p in paths) / 1e6:.1f} MB in {out}",
        flush=True,
    )


def unbundle(folder: Path, work: Path) -> None:
    """Turn a bundle back into the checkpoints of ``work``; the optimiser restarts, with a warm-up."""
    tensors, state = read_bundle(folder)
    if "vae_config" in state:
        vae = in_one_piece(AutoencoderKLHunyuanVideo.from_config(state["vae_config"]))
        load_modules({_VAE: vae}, _group(tensors, "model"))
        vae.save_pretrained(work / "vae" / "model")
        (work / "vae" / "model" / "metrics.json").write_text(json.dumps(state["vae_metrics"], indent=1) + "\n")
    groups = {group: found for group in ("ema", "raw") if (found := _group(tensors, group))}
    if groups:
        training = {name: value for name, value in state["training"].items() if name != "files"}
        save_checkpoint(work / state["stage"], groups, training)
        if state.get("evaluation"):
            (work / state["stage"] / "evaluation.json").write_text(json.dumps(state["evaluation"], indent=1) + "\n")
    print(f"unpacked {folder} into {work}", flush=True)


def read_json(path: Path) -> Any:
    """Content of a JSON file, or None if there is none."""
    return json.loads(path.read_text()) if path.is_file() else None


def _group(tensors: Tensors, group: str) -> Tensors:
    prefix = f"{group}/"
    return {name.removeprefix(prefix): value.float() for name, value in tensors.items() if name.startswith(prefix)}


def _write_index(pipe: HunyuanVideoPipeline, path: Path) -> None:
    """The pipeline's own index, but naming the tokenizer by the class every transformers release knows."""
    index = {name: value for name, value in pipe.config.items() if name == "_diffusers_version"}
    index["_class_name"] = type(pipe).__name__
    for name, module in pipe.components.items():
        library = "diffusers" if name in ("scheduler", "transformer", "vae") else "transformers"
        index[name] = [library, type(module).__name__]
    index["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _forget_origin(config: Path) -> None:
    """Drop the folder from which diffusers loaded the module: it exists on the training machine alone."""
    values = {name: value for name, value in json.loads(config.read_text()).items() if name != "_name_or_path"}
    config.write_text(json.dumps(values, indent=2) + "\n")


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _check_sizes(folder: Path) -> None:
    sizes = _sizes(folder)
    for name, size in sizes.items():
        print(f"{size / 1e6:8.3f} MB  {name}")
    print(f"{sum(sizes.values()) / 1e6:8.3f} MB  in all", flush=True)
    large = [name for name, size in sizes.items() if size > _LARGEST_FILE]
    if large or sum(sizes.values()) > _LARGEST_FOLDER:
        raise ValueError(f"too large to ship: {', '.join(large) or 'the folder as a whole'}")

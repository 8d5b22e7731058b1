"""Writes the trained model as a folder that ``HunyuanVideoPipeline.from_pretrained`` loads, with a model card.

Weights are float16: they lie well inside its range and it rounds them eight times finer than bfloat16 would. They
load as float32 or bfloat16 alike. (Computing in float16 on a CPU is another matter; the model never needs it.)
"""

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoPipeline
from huggingface_hub import save_torch_state_dict

from scripts.train_world.autoencoder import load_vae
from scripts.train_world.card import write_card, write_vocabulary
from scripts.train_world.checkpoint import load_group, load_modules, load_state, read_json
from scripts.train_world.earlier import TEXT_STAGE, first_weights, vae_folder, write_record
from scripts.train_world.network import TransformerConfig, build_modules, set_stride
from scripts.train_world.pool import Geometry
from scripts.train_world.sampling import assemble_pipeline

_SHARD = "15MB"
_LARGEST_FILE = 16_000_000
_LARGEST_FOLDER = 40_000_000


@dataclass(frozen=True)
class Trained:
    """A pipeline with averaged weights, the clip size it was trained at, and the state of its last stage."""

    pipe: HunyuanVideoPipeline
    geometry: Geometry
    state: dict[str, Any]


def load_trained(work: Path, stage: str, device: torch.device) -> Trained:
    """The pipeline of a stage's averaged weights, in float32, straight from its checkpoint.

    Raises:
        FileNotFoundError: if the stage or the VAE has no checkpoint in ``work``.
    """
    state, averaged = load_state(work / stage), load_group(work / stage, "ema")
    if state is None or averaged is None:
        raise FileNotFoundError(f"no checkpoint of the stage '{stage}' in {work}")
    modules, text = build_modules(TransformerConfig.from_dict(state["transformer"]), state["seed"])
    load_modules(modules, averaged)
    for module in modules.values():
        module.to(device).eval()
    if state["stride"] != 1.0:  # has no place in the saved config, but in the record
        set_stride(modules["transformer"], state["stride"])
    vae = load_vae(vae_folder(work), device)
    return Trained(assemble_pipeline(modules, text, vae, state["shift"]), Geometry(**state["geometry"]), state)


def export(work: Path, stage: str, out: Path) -> None:
    """Write the pipeline folder ``out`` (replacing it) from a stage's averaged weights, with vocabulary, record and
    card, and check its sizes. Of the stage ``text`` comes what there is by then: no pipeline, but what later stages can
    start from.

    Raises:
        FileNotFoundError: as :func:`load_trained`.
        ValueError: if a file exceeds 16 MB or the folder 40 MB.
    """
    partial = out.with_name(out.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    if stage == TEXT_STAGE:
        _write_beginning(work, partial)
    else:
        _write_pipeline(work, stage, partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.replace(out)
    _check_sizes(out)


def _write_beginning(work: Path, folder: Path) -> None:
    """The autoencoder, what the stage ``text`` taught and what it left alone, by modules as a pipeline has them."""
    taught = first_weights(work, (TEXT_STAGE,))
    if taught is None or load_state(work / TEXT_STAGE) is None:
        raise FileNotFoundError(f"no checkpoint of the stage '{TEXT_STAGE}' in {work}")
    load_vae(vae_folder(work), torch.device("cpu")).half().save_pretrained(folder / "vae")
    _forget_origin(folder / "vae" / "config.json")
    for module in ("transformer", "text_encoder", "text_encoder_2"):
        part = {n.removeprefix(f"{module}."): t.half() for n, t in taught.items() if n.startswith(f"{module}.")}
        (folder / module).mkdir()
        save_torch_state_dict(part, folder / module, max_shard_size=_SHARD)
    write_record(work, TEXT_STAGE, folder)


def _write_pipeline(work: Path, stage: str, partial: Path) -> None:
    pipe = load_trained(work, stage, torch.device("cpu")).pipe
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        copy.deepcopy(getattr(pipe, name)).half().save_pretrained(partial / name, max_shard_size=_SHARD)
    _forget_origin(partial / "vae" / "config.json")
    pipe.tokenizer.save_pretrained(partial / "tokenizer")
    pipe.tokenizer_2.save_pretrained(partial / "tokenizer_2")
    pipe.scheduler.save_pretrained(partial / "scheduler")
    _write_index(pipe, partial / "model_index.json")
    write_vocabulary(partial)
    write_record(work, stage, partial)
    write_card(partial, read_json(work / stage / "evaluation.json"))


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

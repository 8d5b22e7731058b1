"""The model that a training goes on from, and the record of what was trained so far.

A model is handed over as it ships: an exported folder in float16, whose ``training.json`` says by which stages it was
trained. A copy of it lies in ``work/earlier``; the optimisers of the next stages begin anew, with a warm-up.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.train_world.checkpoint import Tensors, load_group, load_state, read_json, read_tensors
from scripts.train_world.parallel import barrier, rank
from scripts.train_world.recipe import ORDER

RECORD = "training.json"
METRICS = "metrics.json"  # beside the autoencoder, and in the folder of the stage "text"
TEXT_STAGE = "text"
QUESTIONS = "questions"  # what that stage trains besides, and nobody needs later
_FORMAT = 1
_MODULES = ("transformer", "text_encoder", "text_encoder_2")


def begin_with(model: Path, work: Path) -> None:
    """Copy an exported model to where the stages in ``work`` look for it; does nothing if one is there.

    Raises:
        FileNotFoundError: the folder holds no record of a training.
    """
    own = work / "earlier"
    if rank() == 0 and not own.exists():
        if not (model / RECORD).is_file():
            raise FileNotFoundError(f"{model} is no model of this training: {RECORD} is missing")
        partial = work / "earlier.part"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(model, partial)
        partial.rename(own)
    barrier()


@dataclass(frozen=True)
class Beginning:
    """What a stage begins with.

    Attributes:
        again: the earlier model went through the same stage.
        guidance: weight that the model was last trained with, see ``flow``.
        seed: one that no stage of the earlier model had, so that there are other clips.
    """

    again: bool
    guidance: float
    seed: int


def beginning_of(work: Path, stage: str, after: tuple[str, ...] = ()) -> Beginning:
    """What a stage begins with that comes after others, of which ``work`` may hold some."""
    earlier = _record_of(work / "earlier")
    rows = earlier.get("stages", [])
    guidance = earlier.get("guidance", 0.0)
    for name in after:
        guidance = _guidance_of(load_state(work / name), guidance)
    seeds = [row["seed"] for row in rows]
    return Beginning(went_through(work, stage), guidance, max(seeds, default=-1) + 1)


def _guidance_of(state: dict[str, Any] | None, before: float) -> float:
    """After a stage; one that was interrupted may not have come to it."""
    if state is None or "guidance" not in state:
        return before
    return float(state["guidance"]) if state["done"] else 0.0


def went_through(work: Path, *stages: str) -> bool:
    """Whether the earlier model, if there is one, went through one of these stages."""
    return any(row["stage"] in stages for row in _record_of(work / "earlier").get("stages", []))


def vae_folder(work: Path, but: str | None = None) -> Path:
    """Of the autoencoder that ``work`` trained, with its decoder trained on if it was; otherwise the earlier model's.

    Args:
        but: a stage that doesn't count.
    """
    for stage in ("decoder", "vae"):
        own = work / stage / "model"
        if stage != but and (own / "config.json").is_file():
            return own
    return work / "earlier" / "vae"


def vae_facts(work: Path) -> dict[str, Any] | None:
    """What was measured of that autoencoder."""
    own: dict[str, Any] | None = read_json(vae_folder(work) / METRICS)
    return own or _record_of(work / "earlier").get("vae")


def text_facts(work: Path) -> dict[str, Any] | None:
    """What was measured of the text encoders before any clip was seen."""
    own: dict[str, Any] | None = read_json(work / TEXT_STAGE / METRICS)
    return own or _record_of(work / "earlier").get(TEXT_STAGE)


def first_weights(work: Path, before: tuple[str, ...]) -> Tensors | None:
    """Averaged weights to begin a stage with, float32 on the CPU: those of the last stage of ``before`` that ``work``
    trained, and for the modules that it left alone (``text`` leaves the blocks) the earlier model's; None where there
    are none."""
    earlier = _weights_of(work / "earlier") if (work / "earlier").is_dir() else None
    for stage in reversed(before):
        found = load_group(work / stage, "ema")
        if found is not None:
            return {**(earlier or {}), **{n: value for n, value in found.items() if not n.startswith(f"{QUESTIONS}.")}}
    return earlier


def has_blocks(weights: Tensors) -> bool:
    """Whether these are of a whole transformer; ``text`` alone makes none."""
    return any(name.startswith("transformer.transformer_blocks.") for name in weights)


def _weights_of(model: Path) -> Tensors:
    """The tensors of an exported model, by the names that checkpoints have."""
    return {
        f"{module}.{name}": value.float()
        for module in _MODULES
        for path in sorted((model / module).glob("*.safetensors"))
        for name, value in read_tensors(path).items()
    }


def stages_of(work: Path, last: str) -> list[dict[str, Any]]:
    """What was trained up to the stage ``last``, in order of time: ``stage``, ``steps``, ``batch``, ``processes``,
    ``minutes``, ``device`` and ``seed`` of each."""
    rows: list[dict[str, Any]] = list(_record_of(work / "earlier").get("stages", []))
    for name in ORDER[: ORDER.index(last) + 1]:
        state = load_state(work / name)
        if state is not None:
            rows.append(
                {
                    "stage": name,
                    "steps": state["step"],
                    "batch": state["batch"],
                    "processes": state["processes"],
                    "minutes": round(state["seconds"] / 60.0, 1),
                    "device": state["device"],
                    "seed": state["seed"],
                }
            )
    return rows


def write_record(work: Path, stage: str, folder: Path) -> None:
    """Write ``training.json`` of a stage of ``work`` into an exported folder."""
    earlier, state = _record_of(work / "earlier"), load_state(work / stage)
    facts = {n: value for n, value in (earlier | (state or {})).items() if n in ("shift", "stride", "geometry")}
    facts["guidance"] = _guidance_of(state, earlier.get("guidance", 0.0))
    measured = {"vae": vae_facts(work), TEXT_STAGE: text_facts(work)}
    content = {"format": _FORMAT, "stage": stage, **facts, **measured, "stages": stages_of(work, stage)}
    (folder / RECORD).write_text(json.dumps(content, indent=1) + "\n")


def _record_of(model: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(model / RECORD) or {}
    return content

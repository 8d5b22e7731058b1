"""The weights of a run in bytes, and whether the device can hold them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adaspa_cli.config.architecture import BUNDLED, Architecture, known_architecture
from adaspa_cli.config.catalogue import BYTES, catalogue
from adaspa_cli.config.schema import ModelConfig
from adaspa_cli.errors import OutOfMemoryError

_FILES = (".safetensors", ".bin")
_KEPT_BYTES = {"fp8": 1.0, "int8": 1.0, "nf4": 0.56}  # of a weight; nf4 with its scales


def part_bytes(
    model: ModelConfig, architecture: Architecture, itemsize: int = BYTES, *, decodes: bool = True
) -> dict[str, int] | None:
    """Bytes of the weights of each part of the pipeline as the run has them; None where nothing tells.

    A preset's card says how many parameters there are; of another local checkpoint the size of its files counts.

    Args:
        itemsize: bytes of a parameter.
        decodes: whether latents become videos.
    """
    billions = _card_of(model.weights)
    if billions is not None:
        found = {part: round(number * 1e9) * itemsize for part, number in billions.items()}
    else:
        folder = BUNDLED if model.is_bundled else Path(model.weights).expanduser()
        if not folder.is_dir():
            return None
        sizes = {path.name: _file_bytes(path) for path in folder.iterdir() if path.is_dir()}
        found = {part: size for part, size in sizes.items() if size}
    if model.transformer is not None:
        file = Path(model.transformer).expanduser()
        if file.is_file():
            found["transformer"] = file.stat().st_size
    if model.random_weights:
        found = _built(found, model, architecture, decodes=decodes)
    kept = _KEPT_BYTES.get(model.weights_dtype)
    if kept is not None:
        names = architecture.facts.transformers
        found |= {name: round(size / itemsize * kept) for name, size in found.items() if name in names}
    return found


def _card_of(weights: str) -> Mapping[str, float] | None:
    """Billions of parameters by part, of the preset that names these weights."""
    cards = (entry.card for entry in catalogue() if entry.checkpoint.lower() == weights.lower())
    return next((card.billions for card in cards if card is not None), None)


def _file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in _FILES)


def _built(parts: dict[str, int], model: ModelConfig, architecture: Architecture, *, decodes: bool) -> dict[str, int]:
    """Of those what a run with random weights builds: no text encoders, a VAE where it is needed, some layers."""
    facts, present = architecture.facts, architecture.transformers
    needs_vae = decodes or facts.images or facts.asks_vae
    wanted = {*present, *(["vae"] if needs_vae else [])}
    whole = {name: entry.layers for entry in catalogue() for name in [entry.checkpoint.lower()]}
    share = 1.0
    if model.layers is not None:
        share = architecture.layers / whole.get(model.weights.lower(), architecture.layers)
    return {part: round(size * share) if part in present else size for part, size in parts.items() if part in wanted}


def held_weights(parts: Mapping[str, int], offload: str, architecture: Architecture) -> int:
    """Bytes of weights that are on the device at once while the transformer runs."""
    if offload == "none":
        return sum(parts.values())
    transformers = [parts.get(name, 0) for name in architecture.transformers]
    if offload == "model":
        return max(transformers, default=0)
    layers = max(1, architecture.layers // max(1, len(transformers)))
    return 2 * max(transformers, default=0) // layers  # about a block at work, and the next one on its way


def largest_alone(parts: Mapping[str, int], offload: str, architecture: Architecture, itemsize: int = BYTES) -> int:
    """Bytes of what is largest on the device while no transformer is: of the other parts, where whole parts take
    turns; where layers do, the text encoder's table of words, which is the largest of them all."""
    others = {part: size for part, size in parts.items() if part not in architecture.transformers}
    if offload == "group":
        return min(architecture.facts.word_table * itemsize, others.get("text_encoder", 0))
    return max(others.values(), default=0) if offload == "model" else 0


def fp8_weights(architecture: Architecture) -> int:
    """Weights that ``--linear fp8`` puts into FP8, a byte each on the device; in the model's dtype they are in main
    memory. Modulation layers, which are a quarter of HunyuanVideo, are not among them."""
    return sum(_fp8_weights(architecture).values())


def _fp8_weights(architecture: Architecture) -> dict[str, int]:
    """By transformer."""
    return {name: architecture.facts.linear_weights(config) for name, config in architecture.transformers.items()}


def device_bytes(
    parts: Mapping[str, int], linear: str, architecture: Architecture, itemsize: int = BYTES
) -> dict[str, int]:
    """Bytes of each part as a device holds it: with ``--linear fp8`` a byte for each weight of these layers."""
    smaller = _fp8_weights(architecture) if linear == "fp8" else {}
    return {part: size - (itemsize - 1) * smaller.get(part, 0) for part, size in parts.items()}


def main_bytes(parts: Mapping[str, int], linear: str, architecture: Architecture) -> int:
    """Bytes of all weights, as offloading keeps them in main memory: with ``--linear fp8`` these layers in FP8 too."""
    return sum(parts.values()) + (fp8_weights(architecture) if linear == "fp8" else 0)


def check_weights_fit(
    model: ModelConfig, kind: str, memory: int | None, main: int | None = None, linear: str = "model"
) -> None:
    """Refuse weights that alone need more than all memory of the device, or with offloading more than all main
    memory, before they are downloaded or built.

    Only a preset's checkpoint is judged: a folder may hold the same weights several times. Of random weights the
    transformers count, with as many layers as are built.

    Args:
        kind: of the device, ``cpu`` or ``cuda``.
        memory: bytes that it has; None where nothing tells.
        main: bytes of main memory, where offloading keeps the weights; None where nothing tells.
        linear: precision of the linear layers.

    Raises:
        OutOfMemoryError: with what would help.
    """
    if model.is_bundled or Path(model.weights).expanduser().exists():
        return
    architecture = known_architecture(model)
    parts = None if architecture is None else part_bytes(model, architecture, decodes=not model.random_weights)
    if architecture is None or parts is None:
        return
    fewer = "--layers N, to build only some of them; " if model.random_weights else ""
    everything = main_bytes(parts, linear, architecture)
    if model.offload != "none" and main is not None and everything > main:
        need, has = (f"{size / 1e9:.0f} GB" for size in (everything, main))
        raise OutOfMemoryError(
            f"--offload {model.offload} keeps the weights of {model.source} in main memory: about {need}, and this "
            f"machine has {has}",
            hint=f"{fewer}--weights-dtype fp8; a smaller one of adaspa models",
        )
    held = device_bytes(parts, linear, architecture)
    needed = max(fit(held, model.offload, architecture) for fit in (held_weights, largest_alone))
    if memory is None or needed <= memory:
        return
    place = "the GPU" if kind == "cuda" else "this machine"
    need, has = (f"{size / 1e9:.0f} GB" for size in (needed, memory))
    raise OutOfMemoryError(
        f"the weights of {model.source} need about {need} of memory, and {place} has {has}",
        hint=f"{fewer}{_offloads(model.offload, linear)}; a smaller one of adaspa models; "
        "--plan shows what a run needs",
    )


def _offloads(offload: str, linear: str) -> str:
    """What would hold fewer weights on the device."""
    group = "--offload group on a GPU, which holds only the running layers"
    if linear != "fp8":
        return group
    return f"{'--offload model, or ' if offload == 'none' else ''}without --linear fp8 {group}"

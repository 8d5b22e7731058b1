"""Writing a mask file with bounded memory: one part on disk for each mask, joined at the end.

A header with digests can only be written when all tensors are known, and a whole model's masks need not fit into
memory. So each mask is written as a small safetensors file of its own, as soon as it is found, and the parts are
copied behind the header at the end. Both hold the tensors of one mask at a time, and the header.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from adaspa_cli.maskfiles.description import Description, Entry, Place
from adaspa_cli.maskfiles.header import encode


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor of the CPU in row-major order, without a copy if it is contiguous."""
    return memoryview(tensor.contiguous().numpy().view(np.uint8).data).cast("B")


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def write_part(
    path: Path, place: Place, density: Sequence[float], recall: Sequence[float], tensors: Mapping[str, Tensor]
) -> None:
    """Write one mask; ``tensors`` by kind, as :meth:`Description.kinds` has them, on the CPU."""
    digests = {kind: digest(tensor) for kind, tensor in tensors.items()}
    entry = Entry(*place, tuple(density), tuple(recall), digests)
    save_file(dict(tensors), path, {"entry": json.dumps(dataclasses.asdict(entry))})


def read_part_entry(path: Path) -> Entry:
    """What a part says of its mask."""
    with safe_open(path, "pt") as part:
        content: dict[str, Any] = json.loads(part.metadata()["entry"])
    return Entry(**(content | {key: tuple(content[key]) for key in ("density", "recall")}))


def write_mask_file(path: Path, description: Description, parts: Mapping[Place, Path]) -> None:
    """Join the parts to a mask file.

    Args:
        path: written in place; give a temporary name, and rename it when this returns.
        description: without entries; they are in the parts.
        parts: a file of :func:`write_part` for every place.

    Raises:
        ValueError: a part is not what the description says.
    """
    entries = tuple(read_part_entry(parts[place]) for place in description.places())
    description = dataclasses.replace(description, entries=entries)
    problem = description.problem()
    if problem:
        raise ValueError(f"the masks do not make a file: {problem}")
    with path.open("wb") as file:
        file.write(encode(description))
        for place, kind, expected in description.tensors():
            with safe_open(parts[place], "pt") as part:
                tensor = part.get_tensor(kind)
            if tuple(tensor.shape) != expected.shape or tensor.nbytes != expected.nbytes:
                raise ValueError(f"the {kind} of {place} are {tuple(tensor.shape)}, not {expected.shape}")
            file.write(tensor_bytes(tensor))

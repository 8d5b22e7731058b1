"""The shapes of the tensors in a safetensors file. Doesn't import torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUFFIX = ".safetensors"
Shapes = Mapping[str, tuple[int, ...]]
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000  # of safetensors itself


def read_shapes(path: Path) -> Shapes | None:
    """Shapes by the names of the tensors; None if the file's header is not whole.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length, size = file.read(_LENGTH_BYTES), path.stat().st_size
        end = int.from_bytes(length, "little")
        if len(length) < _LENGTH_BYTES or end > min(size - _LENGTH_BYTES, _MOST_HEADER_BYTES):
            return None
        try:
            header: Any = json.loads(file.read(end))
            del header["__metadata__"]
        except KeyError:
            pass
        except (ValueError, RecursionError, TypeError):
            return None
    try:
        return {name: tuple(map(int, entry["shape"])) for name, entry in header.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        return None

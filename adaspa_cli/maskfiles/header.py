"""The header of a mask file: eight bytes of length and a JSON object, as safetensors documents it.

The header is a function of the description alone: names, types, shapes and offsets of the tensors follow from it. So
a reader writes the header of the description that it has read once more and compares every byte. A change anywhere in
the header is seen by that, or by the checksum over the description; a change in the data by the digests that the
description holds.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from adaspa_cli.errors import MaskFileError
from adaspa_cli.maskfiles.description import Description, Place

FORMAT = "adaspa masks"
VERSION = 1
LENGTH_BYTES = 8
MOST_HEADER_BYTES = 100_000_000  # of safetensors itself
_KEY = "__metadata__"


def tensor_name(place: Place, kind: str) -> str:
    """Name of a tensor in the file: layer, branch, step and kind."""
    return ".".join(map(str, (*place, kind)))


def encode(description: Description) -> bytes:
    """The bytes before the data: padded with spaces, so that the data starts at a multiple of eight."""
    content = _dump(description.as_json())
    metadata = {
        "format": FORMAT,
        "format_version": str(VERSION),
        "checksum": checksum_of(VERSION, content),
        "description": content,
    }
    header: dict[str, Any] = {_KEY: metadata}
    start = 0
    for place, kind, tensor in description.tensors():
        stop = start + tensor.nbytes
        header[tensor_name(place, kind)] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = _dump(header).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def read_description(path: Path) -> tuple[Description, str]:
    """Read and check the header of a file; its tensors are not read.

    Returns:
        The description, and the file's checksum, which covers the tensors too by their digests.

    Raises:
        MaskFileError: unreadable, truncated, corrupt, not a mask file, or of a newer format. The reason is named.
    """
    raw, size = _read(path)
    try:
        header = json.loads(raw[LENGTH_BYTES:], parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise MaskFileError(f"{path} is no mask file, or corrupt: its header is not JSON", hint=_HINT) from None
    description, checksum = _interpret(path, header)
    if encode(description) != raw:
        raise MaskFileError(f"{path} is corrupt: its header does not follow from its description", hint=_HINT)
    whole = len(raw) + description.data_bytes
    if size != whole:
        kind = "truncated" if size < whole else "too long"
        raise MaskFileError(f"{path} is {kind}: it has {size} bytes instead of {whole}", hint=_HINT)
    return description, checksum


_HINT = "search the masks again with adaspa search-masks"


def _read(path: Path) -> tuple[bytes, int]:
    """The header's bytes with their length in front, and the size of the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            if len(start) < LENGTH_BYTES or length > min(size - LENGTH_BYTES, MOST_HEADER_BYTES):
                raise MaskFileError(f"{path} is no mask file, or truncated: its header is not whole", hint=_HINT)
            return start + file.read(length), size
    except OSError as error:
        raise MaskFileError(f"cannot read masks from {path}: {error.strerror}") from error


def _interpret(path: Path, header: Any) -> tuple[Description, str]:
    metadata = header.get(_KEY) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise MaskFileError(
            f"{path} is a safetensors file, but holds no masks of adaspa", hint="masks come from adaspa search-masks"
        )
    version, content, checksum = (metadata.get(key) for key in ("format_version", "description", "checksum"))
    if not isinstance(content, str) or not isinstance(version, str) or not version.isdecimal():
        raise MaskFileError(f"{path} is corrupt: format_version or description is missing", hint=_HINT)
    if version != str(VERSION):
        raise MaskFileError(
            f"{path} has format_version {version[:20]}, and this adaspa reads {VERSION}",
            hint="use the adaspa that wrote it, or search the masks again",
        )
    if checksum != checksum_of(VERSION, content):
        raise MaskFileError(f"{path} is corrupt: the checksum does not fit its description", hint=_HINT)
    try:
        return Description.from_json(json.loads(content, parse_constant=_no_constant)), checksum
    except (ValueError, RecursionError, OverflowError) as error:
        raise MaskFileError(f"{path} is corrupt: {error}", hint=_HINT) from error


def _dump(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def checksum_of(version: int, content: str) -> str:
    """SHA-256 over a description as it stands in the file."""
    return hashlib.sha256(f"{FORMAT} {version}\n{content}".encode()).hexdigest()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")

"""The header of a mask file: eight bytes of length and a JSON object, as safetensors documents it.

The header is a function of the description: names, types, shapes and offsets of the tensors follow from it. So
a reader writes the header of the description that it has read once more and compares every byte. A change anywhere in
the header is seen by that, or by the checksum over the description; a change in the data by the digests that the
description holds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from adaspa_cli.errors import MaskFileError
from adaspa_cli.files.mask_header import FORMAT, HINT, LENGTH_BYTES, METADATA, VERSION, checksum_of, read_header
from adaspa_cli.maskfiles.description import Description, Place


@dataclass(frozen=True)
class Described:
    """A mask file as far as it describes itself: its header is whole, and its tensors are not read.

    Attributes:
        path: the file.
        description: everything in it but its tensors.
        checksum: SHA-256 over the description, which holds the digests of all tensors.
    """

    path: Path
    description: Description
    checksum: str

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Read and check the header.

        Raises:
            MaskFileError: as :func:`read_description` does.
        """
        found = Path(path).expanduser()
        return cls(found, *read_description(found))


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
    header: dict[str, Any] = {METADATA: metadata}
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
    header = read_header(path)
    try:
        description = Description.from_json(header.content)
    except (ValueError, RecursionError, OverflowError) as error:
        raise MaskFileError(f"{path} is corrupt: {error}", hint=HINT) from error
    if encode(description) != header.raw:
        raise MaskFileError(f"{path} is corrupt: its header does not follow from its description", hint=HINT)
    whole = len(header.raw) + description.data_bytes
    if header.size != whole:
        kind = "truncated" if header.size < whole else "too long"
        raise MaskFileError(f"{path} is {kind}: it has {header.size} bytes instead of {whole}", hint=HINT)
    return description, header.checksum


def _dump(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"), allow_nan=False)

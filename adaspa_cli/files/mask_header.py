"""The header of a mask file, before its meaning: it is read, and refused where it is not whole, without torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaspa_cli.errors import MaskFileError

FORMAT = "adaspa masks"
VERSION = 1
LENGTH_BYTES = 8
MOST_HEADER_BYTES = 100_000_000  # of safetensors itself
METADATA = "__metadata__"
HINT = "search the masks again with adaspa search-masks"


@dataclass(frozen=True)
class Header:
    """What stands before the tensors.

    Attributes:
        raw: its bytes, with their length in front.
        size: of the file, in bytes.
        content: of the description.
        checksum: over the description; it fits.
    """

    raw: bytes
    size: int
    content: Any
    checksum: str


def read_header(path: Path) -> Header:
    """Read a header, and check all that it says of itself.

    Raises:
        MaskFileError: unreadable, not whole, not a mask file, of a newer format, or its checksum does not fit.
    """
    raw, size = _read(path)
    try:
        header = _parse(raw[LENGTH_BYTES:])
    except (ValueError, RecursionError):
        raise MaskFileError(f"{path} is not a mask file, or is corrupt: its header is not JSON", hint=HINT) from None
    metadata = header.get(METADATA) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise MaskFileError(
            f"{path} is a safetensors file, but holds no masks of adaspa", hint="masks come from adaspa search-masks"
        )
    version, content, checksum = (metadata.get(key) for key in ("format_version", "description", "checksum"))
    if not isinstance(content, str) or not isinstance(version, str) or not version.isdecimal():
        raise MaskFileError(f"{path} is corrupt: format_version or description is missing", hint=HINT)
    if version != str(VERSION):
        raise MaskFileError(
            f"{path} has format_version {version[:20]}, and this adaspa reads {VERSION}",
            hint="use the adaspa that wrote it, or search the masks again",
        )
    if checksum != checksum_of(VERSION, content):
        raise MaskFileError(f"{path} is corrupt: the checksum does not fit its description", hint=HINT)
    try:
        return Header(raw, size, _parse(content), checksum)
    except (ValueError, RecursionError) as error:
        raise MaskFileError(f"{path} is corrupt: {error}", hint=HINT) from error


def _read(path: Path) -> tuple[bytes, int]:
    """The header's bytes with their length in front, and the size of the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            if len(start) < LENGTH_BYTES or length > min(size - LENGTH_BYTES, MOST_HEADER_BYTES):
                raise MaskFileError(f"{path} is not a mask file, or is truncated: its header is not whole", hint=HINT)
            return start + file.read(length), size
    except OSError as error:
        raise MaskFileError(f"cannot read masks from {path}: {error.strerror}") from error


def _parse(text: str | bytes) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def checksum_of(version: int, content: str) -> str:
    """SHA-256 over a description as it stands in the file."""
    return hashlib.sha256(f"{FORMAT} {version}\n{content}".encode()).hexdigest()

"""Files that are not whole, not ours or not for us are refused with the reason; nothing wrong is ever accepted."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adaspa_cli.errors import MaskFileError
from adaspa_cli.files.mask_header import LENGTH_BYTES, VERSION, checksum_of
from adaspa_cli.maskfiles import MaskFile
from tests.mask_files import small_file

MUTATIONS = 4000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small file: one layer, one branch, both search steps, with a ranking and sums."""
    path = tmp_path_factory.mktemp("masks") / "masks.safetensors"
    return small_file(path, layers=1, branches=("cond",), ranked=4, keeps_sums=True).path.read_bytes()


def read(path: Path) -> None:
    """Read all of a file, as verify and a run do."""
    file = MaskFile.open(path)
    for place in file.verify():
        file.video_mask(place)


def reason(path: Path, content: bytes) -> str:
    """Why a file of this content is refused."""
    path.write_bytes(content)
    with pytest.raises(MaskFileError) as error:
        read(path)
    assert error.value.exit_code == 2
    assert "\n" not in error.value.message
    return error.value.message


def header_end(content: bytes) -> int:
    return LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")


def with_header(content: bytes, change: Any) -> bytes:
    """The file with another header, whose length is right."""
    end = header_end(content)
    text = change(content[LENGTH_BYTES:end])
    return len(text).to_bytes(LENGTH_BYTES, "little") + text + content[end:]


def with_description(content: bytes, change: Any) -> bytes:
    """The file with another description, whose checksum is right: what only a program would write."""

    def rewrite(raw: bytes) -> bytes:
        header = json.loads(raw)
        description = json.loads(header["__metadata__"]["description"])
        text = json.dumps(change(description), separators=(",", ":"))
        header["__metadata__"] |= {"description": text, "checksum": checksum_of(VERSION, text)}
        return json.dumps(header, separators=(",", ":")).encode()

    return with_header(content, rewrite)


def test_the_file_itself_is_accepted(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    path.write_bytes(whole)
    read(path)


def test_a_truncated_file_is_refused_wherever_it_ends(whole: bytes, tmp_path: Path) -> None:
    path, end = tmp_path / "masks.safetensors", header_end(whole)
    places = {*range(64), *range(0, len(whole), 37), *range(end - 4, end + 4), *range(len(whole) - 4, len(whole))}
    for length in sorted(places):
        message = reason(path, whole[:length])
        assert "truncated" in message, (length, message)
        if length >= end:
            assert message.endswith(f"it has {length} bytes instead of {len(whole)}")


def test_a_file_that_goes_on_is_refused(whole: bytes, tmp_path: Path) -> None:
    assert "too long" in reason(tmp_path / "masks.safetensors", whole + b"\0")


def test_a_flipped_byte_of_the_data_names_its_mask(whole: bytes, tmp_path: Path) -> None:
    path, end = tmp_path / "masks.safetensors", header_end(whole)
    for place in range(end, len(whole), 29):
        changed = bytearray(whole)
        changed[place] ^= 1
        assert "the checksum does not fit the" in reason(path, bytes(changed))


def test_a_newer_format_is_named(whole: bytes, tmp_path: Path) -> None:
    newer = with_header(whole, lambda raw: raw.replace(b'"format_version":"1"', b'"format_version":"2"'))
    assert "has format_version 2, and this adaspa reads 1" in reason(tmp_path / "masks.safetensors", newer)


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    assert "holds no masks of adaspa" in reason(path, path.read_bytes())
    save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
    assert "holds no masks of adaspa" in reason(path, path.read_bytes())
    for content in (b"", b"{}", b"PK\x03\x04" + b"\0" * 100, b"\x80\x02}q\x00.", b"\xff" * 64):
        assert "is not a mask file, or is" in reason(path, content)
    assert "is not a mask file, or is corrupt" in reason(path, (4).to_bytes(8, "little") + b"what")
    deep = b"[" * 100_000
    assert "is not a mask file, or is corrupt" in reason(path, len(deep).to_bytes(8, "little") + deep)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(MaskFileError, match="No such file"):
        MaskFile.open(tmp_path / "none.safetensors")
    with pytest.raises(MaskFileError, match="Is a directory"):
        MaskFile.open(tmp_path)


def test_a_header_that_is_written_otherwise_is_refused(whole: bytes, tmp_path: Path) -> None:
    """The same content in other bytes was not written by adaspa: something changed it."""
    for change in (
        lambda raw: raw + b" " * 8,
        lambda raw: raw.rstrip(b" ") + b"\n" * (len(raw) - len(raw.rstrip(b" "))) + b"\t" * 8,
        lambda raw: raw.replace(b'"dtype":"F32"', b'"dtype": "F32"', 1),
        lambda raw: raw.replace(b'"I16"', b'"U16"', 1),
    ):
        assert "header does not follow" in reason(tmp_path / "masks.safetensors", with_header(whole, change))


def test_a_ranking_that_names_no_block_is_refused(tmp_path: Path) -> None:
    """A checksum keeps accidents out, not programs: what is read is looked at before kernels follow it."""
    from adaspa_cli.maskfiles import write_mask_file, write_part
    from tests.mask_files import description

    place = (0, "cond", 2)
    facts = description(layers=1, branches=("cond",), search_steps=(2,), ranked=4)
    order = torch.full((2, 12, 4), 12, dtype=torch.int16)
    tensors = {"ranking": order, "recall_by_rank": torch.ones(2, 5)}
    write_part(tmp_path / "part", place, (1.0, 1.0), (1.0, 1.0), tensors)
    write_mask_file(tmp_path / "masks.safetensors", facts, {place: tmp_path / "part"})
    with pytest.raises(MaskFileError, match="names blocks that there are not"):
        MaskFile.open(tmp_path / "masks.safetensors").ranking(place)


def test_mutated_files_are_refused(whole: bytes, tmp_path: Path) -> None:
    """Bytes flipped, set, taken out, put in, doubled and swapped, all over the file."""
    path, rng = tmp_path / "masks.safetensors", random.Random(0)
    for number in range(MUTATIONS):
        changed = mutate(bytearray(whole), rng, header_end(whole))
        path.write_bytes(changed)
        if bytes(changed) == whole:
            read(path)
            continue
        try:
            read(path)
        except MaskFileError:
            continue
        pytest.fail(f"mutation {number} was accepted")


def mutate(content: bytearray, rng: random.Random, header: int) -> bytearray:
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        # Half of the mutations hit the header, and some of them the length in front of it.
        limit = rng.choice((LENGTH_BYTES, header, len(content), len(content)))
        place = rng.randrange(min(limit, len(content)) or 1)
        length = rng.choice((1, 1, 2, 8, 64))
        kind = rng.randrange(6)
        if kind == 0:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[place] = rng.randrange(256)
        elif kind == 2:
            del content[place : place + length]
        elif kind == 3:
            content[place:place] = rng.randbytes(length)
        elif kind == 4:
            content[place:place] = content[place : place + length]
        else:
            other = rng.randrange(len(content))
            content[place], content[other] = content[other], content[place]
        if not content:
            return content
    return content


STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**70,
    0.5,
    1e400,
    "",
    "cond",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    [-1, 5],
)


def test_mutated_descriptions_with_a_right_checksum_are_refused_or_mean_the_same(whole: bytes, tmp_path: Path) -> None:
    """Values of other types and sizes, fields taken out, entries doubled: a clean refusal, whatever it is."""
    path, rng = tmp_path / "masks.safetensors", random.Random(1)
    outcomes = set()
    for _ in range(1000):
        content = with_description(whole, lambda description: strange(description, rng))
        path.write_bytes(content)
        try:
            read(path)
        except MaskFileError as error:
            outcomes.add(error.message.removeprefix(str(path)).split(":")[0])
    assert outcomes <= {" is corrupt", " is truncated", " is too long"}, outcomes


def strange(description: dict[str, Any], rng: random.Random) -> Any:
    holder: Any = description
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return description
        key = rng.choice(keys)
        if isinstance(holder[key], dict | list) and rng.random() < 0.7:
            holder = holder[key]
            continue
        kind = rng.randrange(3)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder[key] = rng.choice(STRANGE)
        return description

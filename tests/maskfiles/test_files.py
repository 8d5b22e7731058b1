"""A mask file gives back what was written, with the memory of one mask, and is what its format says."""

import dataclasses
import hashlib
import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from adaspa_cli.attention import TokenLayout
from adaspa_cli.maskfiles import Description, Entry, MaskFile, MethodFacts, writer
from adaspa_cli.maskfiles.header import encode
from adaspa_cli.maskfiles.ranking import choose_counts, ranked_blocks
from adaspa_cli.masks.selection import select
from adaspa_cli.masks.text import video_part
from tests.mask_files import BLOCK, HEADS, LAYOUT, block_sums, description, small_file

KINDS = {
    "one sparsity": {},
    "ranking": {"ranked": 8},
    "sums": {"keeps_sums": True},
    "ranking and sums": {"ranked": 5, "keeps_sums": True},
}


def expected_mask(place: tuple[int, str, int], sparsity: float = 0.75) -> torch.Tensor:
    found = select(block_sums(place), LAYOUT, (BLOCK, BLOCK), sparsity, head_adaptive=True)
    return video_part(found.mask.to_bool(), LAYOUT, (BLOCK, BLOCK))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_mask_comes_back(kind: dict[str, Any], tmp_path: Path) -> None:
    file = small_file(tmp_path / "masks.safetensors", **kind)
    assert list(file.verify()) == list(file.description.places())
    assert len(file.description.entries) == 8
    for place in file.description.places():
        assert torch.equal(file.video_mask(place), expected_mask(place))
        entry = file.entry(place)
        assert entry.place == place
        found = select(block_sums(place), LAYOUT, (BLOCK, BLOCK), 0.75, head_adaptive=True)
        assert found.recall is not None
        torch.testing.assert_close(torch.tensor(entry.recall), found.recall)
        torch.testing.assert_close(torch.tensor(entry.density), found.mask.density())
        if file.description.keeps_sums:
            sums, text = file.sums(place)
            video = video_part(block_sums(place), LAYOUT, (BLOCK, BLOCK))
            torch.testing.assert_close(sums, video, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(text + video.sum((-1, -2)), block_sums(place).sum((-1, -2)))


def test_a_ranking_serves_other_sparsities(tmp_path: Path) -> None:
    file = small_file(tmp_path / "masks.safetensors", ranked=8)
    for place in file.description.places():
        for sparsity in (0.6, 0.9):
            ranking = file.ranking(place)
            counts = choose_counts(ranking, sparsity, 12, True)
            assert torch.equal(ranked_blocks(ranking.order, counts, 12), expected_mask(place, sparsity))


def test_the_description_comes_back(tmp_path: Path) -> None:
    file = small_file(tmp_path / "masks.safetensors", ranked=5, keeps_sums=True)
    facts = description(ranked=5, keeps_sums=True)
    changed = {**file.description.as_json(), "entries": []}
    assert json.loads(json.dumps(changed)) == json.loads(json.dumps(facts.as_json() | {"entries": []}))


def test_safetensors_reads_it_too(tmp_path: Path) -> None:
    """It is a plain safetensors file, whose header says the rest."""
    file = small_file(tmp_path / "masks.safetensors", keeps_sums=True)
    tensors = load_file(file.path)
    assert len(tensors) == 3 * 8
    assert tensors["1.uncond.8.bits"].dtype == torch.int32
    assert tensors["1.uncond.8.bits"].shape == (HEADS, 12, 1)
    assert torch.equal(tensors["0.cond.2.sums"], file.read((0, "cond", 2), "sums"))
    with safe_open(file.path, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["format"] == "adaspa masks"
    assert metadata["format_version"] == "1"
    assert metadata["checksum"] == file.checksum


def test_the_same_masks_make_the_same_bytes(tmp_path: Path) -> None:
    first, second = (small_file(tmp_path / name, ranked=5) for name in ("a.safetensors", "b.safetensors"))
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.checksum == second.checksum
    assert small_file(tmp_path / "c.safetensors", seed=1, ranked=5).checksum != first.checksum
    assert small_file(tmp_path / "d.safetensors", ranked=5, seeds=(0, 2)).checksum != first.checksum


def test_the_data_is_as_large_as_the_paper_s_model_needs() -> None:
    """HunyuanVideo at 720p x 129 frames, one search step: 60 layers x 24 heads x 1,856 x 1,856 blocks in bits."""
    layout = TokenLayout(33, 45, 80, 256, "last")
    facts = description(layout=layout, block_size=64, layers=60, heads=24, branches=("cond",), search_steps=(10,))
    assert facts.video_blocks == 1856
    assert facts.data_bytes == 60 * 24 * 1856 * 1856 // 8 == 620_052_480


def test_reading_and_writing_hold_one_tensor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    original = writer.tensor_bytes

    def watched(tensor: torch.Tensor) -> memoryview:
        nonlocal most
        alive.append(weakref.ref(tensor))
        most = max(most, sum(ref() is not None for ref in alive))
        return original(tensor)

    file = small_file(tmp_path / "masks.safetensors", keeps_sums=True)
    parts = {place: tmp_path / ".".join(map(str, place)) for place in file.description.places()}
    for place, part in parts.items():
        tensors = {kind: file.read(place, kind).clone() for kind in file.description.kinds()}
        writer.write_part(part, place, (0.5, 0.5), (0.5, 0.5), tensors)
    del tensors
    monkeypatch.setattr(writer, "tensor_bytes", watched)
    writer.write_mask_file(tmp_path / "again.safetensors", description(keeps_sums=True), parts)
    again = MaskFile.open(tmp_path / "again.safetensors")
    assert len(alive) == 3 * 8
    for _ in again.verify():
        pass
    assert len(alive) == 2 * 3 * 8
    assert most <= 2, "the one at hand, and the one before until its name is bound anew"


def test_a_part_of_another_shape_makes_no_file(tmp_path: Path) -> None:
    file = small_file(tmp_path / "masks.safetensors", branches=("cond",), layers=1, search_steps=(2,))
    place = (0, "cond", 2)
    part = tmp_path / "part"
    writer.write_part(part, place, (1.0, 1.0), (1.0, 1.0), {"bits": torch.zeros(2, 11, 1, dtype=torch.int32)})
    one = description(branches=("cond",), layers=1, search_steps=(2,))
    with pytest.raises(ValueError, match=r"bits of \(0, 'cond', 2\) are \(2, 11, 1\)"):
        writer.write_mask_file(tmp_path / "other.safetensors", one, {place: part})
    writer.write_part(part, place, (1.0,), (1.0,), {"bits": file.read(place, "bits").clone()})
    with pytest.raises(ValueError, match="has 1 densities"):
        writer.write_mask_file(tmp_path / "other.safetensors", one, {place: part})


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"search_steps": (8, 2)}, "search_steps are"),
        ({"search_steps": (2, 14)}, "search_steps are"),
        ({"branches": ()}, r"branches are \[\]"),
        ({"branches": ("cond", "cond")}, r"branches are \['cond', 'cond'\]"),
        ({"branches": ("../cond",)}, r"branches are \['../cond'\]"),
        ({"ranked": 13}, "ranked is 13, of 12 blocks"),
        ({"method": MethodFacts("adaspa", 1.0, True, True)}, "sparsity is 1.0"),
        ({"method": MethodFacts("adaspa", math.inf, True, True)}, "sparsity is inf"),
        ({"layout": TokenLayout(1, 1, 7, 3, "last")}, "no block without text"),
        ({}, "entries are 0, not 8"),
    ],
)
def test_an_impossible_description_is_named(changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Description.from_json(json.loads(json.dumps(description(**changed).as_json())))


@pytest.mark.parametrize(
    ("changed", "digest"),
    [
        ({}, "aa284da5cd7d65f0876c2c9dd757e44dbde38b2d554bd6d251be922d9e4512fc"),
        ({"layout": dataclasses.replace(LAYOUT, order="hilbert")}, None),
        ({"method": MethodFacts("adaspa", 0.75, False, True, "output-error", True)}, None),
    ],
    ids=["first", "hilbert", "scores"],
)
def test_the_header_is_to_the_byte_that_of_the_first_files(changed: dict[str, Any], digest: str | None) -> None:
    """So that files written before can be read: a reader makes the header anew and compares. What is younger than the
    format is there only where it is another than it was then."""
    facts = description(**changed)
    entries = tuple(Entry(*place, (0.5, 0.25), (0.75, 0.5), {"bits": "0" * 64}) for place in facts.places())
    whole = dataclasses.replace(facts, entries=entries)
    raw = encode(whole)
    assert (digest is None) or hashlib.sha256(raw).hexdigest() == digest
    assert (b"order" in raw) == ("layout" in changed)
    assert (b"selection" in raw) == (b"layer_budget" in raw) == ("method" in changed)
    assert Description.from_json(json.loads(json.dumps(whole.as_json()))) == whole

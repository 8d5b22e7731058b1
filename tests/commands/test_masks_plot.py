"""``adaspa masks plot``: its pictures are those of the file, its folder is whole, its page loads nothing."""

import base64
import dataclasses
import errno
import itertools
import json
import os
import re
import weakref
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from adaspa_cli.app import app
from adaspa_cli.attention import TokenLayout
from adaspa_cli.maskfiles import MaskFile, ModelFacts
from adaspa_cli.maskfiles.compare import compare
from adaspa_cli.masks.text import with_text
from adaspa_cli.masks.token_order import video_order
from adaspa_cli.visual import mask_plot
from adaspa_cli.visual.mask_choice import MaskChoice
from adaspa_cli.visual.mask_figures import caption, draw_looks, greys
from adaspa_cli.visual.mask_reading import kept_shares, read_masks, token_shares
from tests.browser import Browser, check_readable
from tests.mask_files import BLOCK, LAYOUT, small_file
from tests.pages import loads_nothing, read
from tests.token_orders import sequence_order

USAGE, INTERRUPTED = 2, 130


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> MaskFile:
    return small_file(tmp_path / "cat.safetensors")


def plot(file: Path, *arguments: str) -> Result:
    """Plot a file, and others if the arguments begin with them, into ``out`` beside it."""
    return CliRunner().invoke(app, ["masks", "plot", str(file), *arguments, "--out", str(file.parent / "out")])


def refused(result: Result, message: str) -> None:
    assert result.exit_code == USAGE, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert message in errors[0]
    assert result.stdout == ""


def place_of(greys: np.ndarray[Any, Any], sheet: Path) -> tuple[int, int]:
    """Where a sheet shows a picture, one square of pixels a value: its top and left edge; it must stand there once."""
    pixels = np.asarray(Image.open(sheet))
    for square in range(1 + 256 // len(greys), 0, -1):
        wanted = greys.astype(np.uint8).repeat(square, 0).repeat(square, 1)
        height, width = wanted.shape
        first = re.compile(b"(?=" + re.escape(wanted[0].tobytes()) + b")")
        starts = [(top, match.start()) for top, row in enumerate(pixels) for match in first.finditer(row.tobytes())]
        if places := [(y, x) for y, x in starts if np.array_equal(pixels[y : y + height, x : x + width], wanted)]:
            (place,) = places
            return place
    pytest.fail(f"{sheet.name} does not show the picture")


def greys_of(kept: torch.Tensor) -> np.ndarray[Any, Any]:
    """A head's mask: kept blocks black, others white."""
    return np.where(kept.numpy(), 0, 255)


def test_the_folder_is_whole(file: MaskFile) -> None:
    result = plot(file.path, "--json")
    assert result.exit_code == 0, result.output
    out = file.path.parent / "out"
    heats = [f"heat-step{step}-{branch}.png" for step in (2, 8) for branch in ("cond", "uncond")]
    overlaps = [f"overlap-steps2-8-{branch}.png" for branch in ("cond", "uncond")]
    blocks = [f"blocks-layer{layer}-head{head}.png" for layer in (0, 1) for head in (0, 1)]
    frames = [f"frames-layer{layer}-head{head}.png" for layer in (0, 1) for head in (0, 1)]
    expected = sorted(str(out / "cat" / name) for name in ("index.html", *heats, *overlaps, *blocks, *frames))
    assert json.loads(result.stdout) == {"page": str(out / "cat" / "index.html"), "files": expected}
    assert [path.name for path in out.iterdir()] == ["cat"]
    for path in (out / "cat").glob("*.png"):
        Image.open(path).verify()
    assert len({Image.open(out / "cat" / name).size for name in blocks}) == 1


@pytest.mark.parametrize("ranked", [None, 6])
def test_pictures_are_the_masks(tmp_path: Path, ranked: int | None) -> None:
    file = small_file(tmp_path / "cat.safetensors", ranked=ranked)
    plot(file.path)
    for layer, head in itertools.product(range(2), range(2)):
        sheet = tmp_path / "out" / "cat" / f"blocks-layer{layer}-head{head}.png"
        corners = [
            [place_of(greys_of(file.video_mask((layer, branch, step))[head]), sheet) for branch in ("cond", "uncond")]
            for step in (2, 8)
        ]
        tops, lefts = ([[corner[axis] for corner in row] for row in corners] for axis in (0, 1))
        assert tops[0][0] == tops[0][1] < tops[1][0] == tops[1][1], "a row for each step"
        assert lefts[0] == lefts[1] == sorted(set(lefts[0])), "a column for each branch"


def test_long_sequences_are_pooled(tmp_path: Path) -> None:
    """25 blocks in 8 points at most: cells of 4 x 4 blocks, the last of 4 x 1 and 1 x 1."""
    layout = TokenLayout(frames=5, height=5, width=8, text_tokens=5, text_position="last")
    file = small_file(tmp_path / "cat.safetensors", layout=layout, branches=("cond",))
    assert plot(file.path, "--pixels", "8", "--at-heads", "1").exit_code == 0
    kept = file.video_mask((1, "cond", 8))[1].numpy()
    means = [[kept[y : y + 4, x : x + 4].mean() for x in range(0, 25, 4)] for y in range(0, 25, 4)]
    shown = 255 - np.round(np.array(means) * 255)
    assert len(np.unique(shown)) > 4
    place_of(shown, tmp_path / "out" / "cat" / "blocks-layer1-head1.png")
    assert "an area of 4 x 4 blocks" in (tmp_path / "out" / "cat" / "index.html").read_text()


def test_shares_of_cells() -> None:
    kept = torch.rand(7, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(kept_shares(kept, 7), kept.double())
    shares = kept_shares(kept, 3)
    assert shares.shape == (3, 3)
    assert shares[2, 2] == kept[6, 6]
    assert shares[0, 2] == kept[:3, 6].double().mean()
    assert greys(torch.tensor([[0.0, 0.2, 1.0]])).tolist() == [[255, 204, 0]]


@pytest.mark.parametrize("position", ["last", "first"])
@pytest.mark.parametrize("pixels", [105, 20])
def test_other_orders_are_shown_as_tokens_frame_by_frame(position: Literal["first", "last"], pixels: int) -> None:
    """Mapped back by brute force; the text and 3 or 1 tokens of video are in blocks with text, which are kept."""
    layout = TokenLayout(3, 5, 7, 5, position, "hilbert")
    blocks = len(layout.video_blocks(8))
    kept = torch.rand(1, blocks, blocks, generator=torch.Generator().manual_seed(0)) < 0.3
    full = with_text(kept, layout, (8, 8))[0].repeat_interleave(8, 0).repeat_interleave(8, 1)
    order = sequence_order(layout)
    seen = order.undo(order.undo(full[: layout.tokens, : layout.tokens], 0), 1)
    video = seen[layout.video_start :, layout.video_start :][:105, :105].double()
    cell = -(-105 // pixels)
    expected = [[video[y : y + cell, x : x + cell].mean() for x in range(0, 105, cell)] for y in range(0, 105, cell)]
    torch.testing.assert_close(token_shares(kept[0], layout, 8, pixels), torch.tensor(expected))


def test_what_a_token_looks_at_is_painted_over_the_frames(tmp_path: Path) -> None:
    """Of the Hilbert file the tokens on the curve, of the raster file those in reading order."""
    raster = small_file(tmp_path / "raster.safetensors", branches=("cond",))
    hilbert = small_file(
        tmp_path / "hilbert.safetensors", branches=("cond",), layout=dataclasses.replace(LAYOUT, order="hilbert")
    )
    query = (1, 2, 5)
    seen = read_masks([raster, hilbert], MaskChoice.of([raster, hilbert], query=query), lambda _place: None)
    token, place = (1 * 4 + 2) * 8 + 5, (1, "cond", 8)
    for number, file in enumerate((raster, hilbert)):
        places = video_order(LAYOUT).backward if number else torch.arange(96)
        kept = file.video_mask(place)[1][places[token] // BLOCK]
        look = seen.looks[number, place][1]
        assert look.shape == (3, 4, 8)
        assert look.flatten().tolist() == (kept[places // BLOCK] * 255).tolist()
    assert draw_looks(seen, 1, 1).size == draw_looks(seen, 0, 0).size
    result = plot(raster.path, str(hilbert.path), "--query", "1,2,5")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out" / "raster" / "index.html").read_text()
    for words in (
        "along a Hilbert curve",
        "frame by frame and row by row",
        "token 1, 2, 5",
        "pairs of tokens are counted",
    ):
        assert words in text


def test_overlaps_of_steps_are_those_of_compare(file: MaskFile) -> None:
    seen = read_masks([file], MaskChoice.of([file], (0,), (0,)), lambda _place: None)
    for overlap in compare(file, file, (2, 8)):
        rows = dict(seen.step_overlaps[0, overlap.branch, (2, 8)])
        assert rows[overlap.layer] == pytest.approx(overlap.iou.tolist(), abs=1e-6)
    assert (len(seen.step_overlaps), seen.file_overlaps) == (2, {})
    assert seen.overlaps(0, (0, "cond", 2), 0) == []
    assert seen.overlaps(0, (0, "cond", 8), 0) == [("step 2", dict(seen.step_overlaps[0, "cond", (2, 8)])[0][0])]


def test_overlaps_of_files_are_those_of_compare(file: MaskFile) -> None:
    """The second and the third with the first; each file's steps with one another."""
    others = [small_file(file.path.with_name(f"{seed}.safetensors"), seed=seed) for seed in (1, 2)]
    files = [file, *others]
    seen = read_masks(files, MaskChoice.of(files), lambda _place: None)
    for number, other in enumerate(others, 1):
        for overlap in compare(file, other):
            rows = dict(seen.file_overlaps[number, overlap.branch, overlap.steps[0]])
            assert rows[overlap.layer] == pytest.approx(overlap.iou.tolist(), abs=1e-6)
        for overlap in compare(other, other, (2, 8)):
            rows = dict(seen.step_overlaps[number, overlap.branch, (2, 8)])
            assert rows[overlap.layer] == pytest.approx(overlap.iou.tolist(), abs=1e-6)
    assert len(seen.file_overlaps) == 2 * 2 * 2
    assert [other for other, _ in seen.overlaps(2, (0, "cond", 8), 0)] == ["step 2", "file 1"]


def test_two_files(file: MaskFile) -> None:
    """Side by side, of what both have; the folder has the first one's name."""
    other = small_file(file.path.with_name("dog.safetensors"), seed=1, branches=("cond",), search_steps=(8, 11))
    assert plot(file.path, str(other.path), "--at-heads", "1").exit_code == 0
    folder = file.path.parent / "out" / "cat"
    assert {path.name for path in folder.iterdir()} == {
        "index.html",
        "heat-step8-cond-file1.png",
        "heat-step8-cond-file2.png",
        "overlap-files1-2-step8-cond.png",
        "blocks-layer0-head1.png",
        "blocks-layer1-head1.png",
        "frames-layer0-head1.png",
        "frames-layer1-head1.png",
    }
    for layer in (0, 1):
        lefts: list[int] = []
        for one in (file, other):
            sheet = folder / f"blocks-layer{layer}-head1.png"
            lefts.append(place_of(greys_of(one.video_mask((layer, "cond", 8))[1]), sheet)[1])
        assert lefts[0] < lefts[1]
    text = (folder / "index.html").read_text(encoding="utf-8")
    loads_nothing(text, read(text))
    for title in ("File 2: dog.safetensors", "Recall, step 8, file 2", "IoU, step 8, files 1 and 2"):
        assert title in text
    assert "Overlap of steps" not in text


def test_captions(file: MaskFile, tmp_path: Path) -> None:
    """Density and recall of the mask, its overlaps, and whose it is where there are several."""
    alone = small_file(tmp_path / "alone.safetensors", branches=("cond",))
    place = (1, "cond", 8)
    seen = read_masks([alone], MaskChoice.of([alone]), lambda _place: None)
    entry, overlap = alone.entry(place), dict(seen.step_overlaps[0, "cond", (2, 8)])[1][0]
    figures = f"density {entry.density[0]:.3f}, recall {entry.recall[0]:.3f}"
    assert caption(seen, 0, place, 0) == [figures, f"IoU with step 2: {overlap:.3f}"]
    two = read_masks([file, file], MaskChoice.of([file, file]), lambda _place: None)
    lines = caption(two, 1, place, 0)
    assert (lines[0], lines[-1], len(lines)) == ("cond, file 2", "IoU with file 1: 1.000", 4)


def test_what_was_chosen_is_drawn(file: MaskFile) -> None:
    """One step has no overlap, and masks of other layers are not read."""
    places: list[Any] = []
    read_masks([file], MaskChoice.of([file], (1,), (0,), (8,)), places.append)
    assert places == [(1, "cond", 8), (1, "uncond", 8)]
    assert plot(file.path, "--at-layers", "1", "--at-heads", "0", "--steps", "8").exit_code == 0
    names = {path.name for path in (file.path.parent / "out" / "cat").iterdir()}
    heats = {"heat-step8-cond.png", "heat-step8-uncond.png"}
    assert names == {"index.html", *heats, "blocks-layer1-head0.png", "frames-layer1-head0.png"}
    assert "Overlap" not in (file.path.parent / "out" / "cat" / "index.html").read_text()


def test_the_page_holds_everything_and_loads_nothing(file: MaskFile) -> None:
    plot(file.path)
    folder = file.path.parent / "out" / "cat"
    text = (folder / "index.html").read_text(encoding="utf-8")
    loads_nothing(text, read(text))
    inside = [base64.b64decode(found) for found in re.findall(r'src="data:image/png;base64,([^"]*)"', text)]
    assert inside == [
        (folder / f"{kind}-layer{layer}-head{head}.png").read_bytes()
        for layer in (0, 1)
        for head in (0, 1)
        for kind in ("blocks", "frames")
    ]
    for title in ("Density, step 2, cond", "Recall, step 8, uncond", "IoU, steps 2 and 8, cond", "grüner Stern"):
        assert title in text
    entry = file.entry((1, "uncond", 8))
    assert f'title="layer 1, head 1: {entry.recall[1]:.3f}"' in text
    assert "random weights" not in text


def test_the_page_is_readable_at_every_width(file: MaskFile, browser: Browser) -> None:
    page = json.loads(plot(file.path, "--at-layers", "1", "--at-heads", "0", "--json").stdout)["page"]
    check_readable(browser, Path(page).as_uri())


def test_random_weights_are_told(tmp_path: Path) -> None:
    model = ModelFacts("<hunyuan>", True, "HunyuanVideoPipeline", "0" * 64)
    plot(small_file(tmp_path / "cat.safetensors", model=model).path)
    text = (tmp_path / "out" / "cat" / "index.html").read_text()
    assert "the masks are meaningless" in text
    assert "&lt;hunyuan&gt;" in text


def test_at_most_one_mask_of_each_file_and_one_more_are_held(file: MaskFile, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0
    read_mask = MaskFile.video_mask

    def noting(self: MaskFile, place: Any) -> torch.Tensor:
        nonlocal most
        kept = read_mask(self, place)
        alive.add(kept)
        most = max(most, len(alive))
        return kept

    monkeypatch.setattr(MaskFile, "video_mask", noting)
    read_masks([file, file], MaskChoice.of([file, file]), lambda _place: None)
    assert most <= 3


def test_quiet_json_and_help(file: MaskFile) -> None:
    result = plot(file.path, "--json", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    json.loads(result.stdout)
    assert "Example: adaspa masks plot masks.safetensors" in CliRunner().invoke(app, ["masks", "plot", "--help"]).stdout


def test_nothing_is_overwritten(file: MaskFile) -> None:
    folders = [Path(plot(file.path).stdout.strip()).parent.name for _ in range(3)]
    assert folders == ["cat", "cat-2", "cat-3"]


def test_an_interruption_leaves_nothing(file: MaskFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mask_plot, "page", interrupted)
    result = plot(file.path)
    assert result.exit_code == INTERRUPTED
    assert "nothing was written" in result.stderr
    assert not list((file.path.parent / "out").iterdir())


def test_a_full_disk_leaves_nothing(file: MaskFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(mask_plot, "page", full)
    result = plot(file.path)
    assert result.exit_code == 1, result.output
    assert "the disk is full" in result.stderr
    assert not list((file.path.parent / "out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--at-layers", "0,2"], "cat.safetensors has no layer 2; its layers are 0 to 1"),
        (["--at-heads", "7"], "cat.safetensors has no head 7; its heads are 0 to 1"),
        (["--steps", "2,3"], "cat.safetensors has no search step 3; its search steps are 2, 8"),
        (["--query", "3,0,0"], "query 3,0,0 is outside the video of 3 x 4 x 8 tokens"),
        (["--query", "1,2"], "--query takes FRAME,Y,X"),
        (["--steps", "two"], "--steps takes comma-separated whole numbers from 0, got 'two'"),
    ],
)
def test_wrong_use(file: MaskFile, arguments: list[str], message: str) -> None:
    refused(plot(file.path, *arguments), message)
    assert list(file.path.parent.iterdir()) == [file.path]


def test_files_that_cannot_be_compared(file: MaskFile) -> None:
    folder = file.path.parent
    for name, changed, message in (
        ("size", {"layers": 1}, "different shapes cannot be compared: layers is 2"),
        ("steps", {"search_steps": (3,)}, "no search step is in all of the files: 2, 8; 3"),
        ("branch", {"branches": ("cond",)}, None),
    ):
        small_file(folder / f"{name}.safetensors", **changed)
        if message:
            refused(plot(file.path, str(folder / f"{name}.safetensors")), message)
    small_file(folder / "other.safetensors", branches=("uncond",))
    message = "no guidance branch is in all of the files: cond; uncond"
    refused(plot(folder / "branch.safetensors", str(folder / "other.safetensors")), message)
    message = "steps.safetensors has no search step 2; its search steps are 3"
    refused(plot(file.path, str(folder / "steps.safetensors"), "--steps", "2"), message)
    refused(plot(file.path, str(folder / "none.safetensors")), "none.safetensors: No such file")
    assert not (folder / "out").exists()


def test_corrupt_files(file: MaskFile) -> None:
    content = bytearray(file.path.read_bytes())
    content[-3] ^= 4
    file.path.write_bytes(content)
    refused(plot(file.path), "cat.safetensors is corrupt: the checksum does not fit the bits of layer 1")
    file.path.write_bytes(content[:-1])
    refused(plot(file.path), "is truncated")
    assert list(file.path.parent.iterdir()) == [file.path]
    refused(plot(file.path.with_name("none")), "No such file")


def test_a_folder_that_cannot_be_made(file: MaskFile) -> None:
    file.path.with_name("out").write_text("")
    refused(plot(file.path), "is not a folder")

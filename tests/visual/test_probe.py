"""A look at a small pipeline: its numbers are a report's, its folder is whole, its page is whole in itself."""

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adaspa_cli.attention import BlockMask, TokenLayout
from adaspa_cli.config import resolve
from adaspa_cli.errors import ConfigError
from adaspa_cli.masks.token_order import video_order
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.visual import view
from adaspa_cli.visual.choice import Choice, ProbeRequest, check_grid
from adaspa_cli.visual.figures import colours
from adaspa_cli.visual.probe import PackedMask, ProbeResult, view_of
from adaspa_cli.visual.run import probe, visualize
from adaspa_cli.visual.weights import cell_size, mass
from tests.pages import Page, loads_nothing, read
from tests.pipelines import PROMPT, Listener, cogvideox, make_reports, small_run

GRID = (2, 4, 6)  # tokens of 5 frames of 32 x 48
ASKED = ProbeRequest((0, 3), (1,), (1, 3), 1, 16, (1, 2, 3))
PROMPTS = [PROMPT, "a green star of quite another length rotates"]


def settings(model: Path, out: Path, **flags: Any) -> dict[str, Any]:
    return small_run(model, out, seed=(0, 1), head_adaptive=False) | flags


@pytest.fixture(scope="module")
def folder(hunyuan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``adaspa visualize`` leaves."""
    resolved = resolve(settings(hunyuan_folder, tmp_path_factory.mktemp("out"), prompt=PROMPTS))
    return visualize(resolved, ASKED, Listener(), PROMPTS)


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "data.json").read_text())


@pytest.fixture(scope="module")
def page(folder: Path) -> tuple[str, Page]:
    text = (folder / "index.html").read_text(encoding="utf-8")
    return text, read(text)


def test_the_folder_is_whole(folder: Path) -> None:
    assert folder.name == "a-red-circle-moves-left-on-a-blue-background-seed0"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    heads = [f"{kind}layer{layer}-head1.png" for layer in (0, 3) for kind in ("", "query-")]
    expected = {"index.html", "data.json", "video.mp4", "recall.png", "lse.png", "videos.png", *heads}
    assert {path.name for path in folder.iterdir()} == expected
    for path in folder.glob("*.png"):
        Image.open(path).verify()


def test_recall_and_density_are_those_of_the_latency_report(
    found: dict[str, Any], hunyuan_folder: Path, tmp_path: Path
) -> None:
    """Up to its first search a sparse run is dense too, so that it must find the same masks."""
    (report,) = make_reports(resolve(small_run(hunyuan_folder, tmp_path, head_adaptive=False)), Listener())
    masks = {(mask["layer"], mask["step"]): mask for mask in found["masks"]}
    assert set(masks) == {(layer, step) for layer in range(4) for step in (1, 3)}
    first = [search for search in report["searches"] if search["step"] == 1]
    assert len(first) == 4
    for search in first:
        mask = masks[search["layer"], 1]
        assert mask["recall"] == pytest.approx(search["recall"], abs=2e-6)
        assert mask["density"] == search["density"]
        assert mask["reused"] == pytest.approx(mask["recall"], abs=2e-6)


@pytest.fixture(scope="module")
def plus(hunyuan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Settings of adaspa-plus with a ramp, and what ``adaspa visualize`` leaves of them."""
    flags = settings(
        hunyuan_folder,
        tmp_path_factory.mktemp("out"),
        seed=0,
        method="adaspa-plus",
        head_adaptive=True,
        sparsity="0:0.4,2:0.7",
        search_rows=1,
        height=64,
        width=96,
        frames=9,
    )
    del flags["search_steps"]
    asked = ProbeRequest((0, 3), (1,), (0, 1, 2), 0, 16, (1, 2, 3))
    return flags, visualize(resolve(flags), asked, Listener(), [PROMPT])


@pytest.fixture(scope="module")
def seen_plus(plus: tuple[dict[str, Any], Path]) -> dict[str, Any]:
    return json.loads((plus[1] / "data.json").read_text())


def first_searches(flags: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """What a run says of its first searches, which are in dense attention."""
    (report,) = make_reports(resolve(flags | {"out": str(out)}), Listener())
    return [search for search in report["searches"] if search["step"] == 0]


def test_masks_of_adaspa_plus_are_those_of_its_run(
    plus: tuple[dict[str, Any], Path], seen_plus: dict[str, Any], tmp_path: Path
) -> None:
    """In its order, by its scores and budget, at each step's sparsity."""
    masks = {(mask["layer"], mask["step"]): mask for mask in seen_plus["masks"]}
    first = first_searches(plus[0], tmp_path)
    assert len(first) == 4
    for search in first:
        mask = masks[search["layer"], 0]
        assert mask["density"] == search["density"]
        assert mask["recall"] == pytest.approx(search["recall"], abs=2e-6)
    assert seen_plus["layout"]["order"] == "hilbert"
    assert seen_plus["sparsity_by_step"] == [0.4, 0.4, 0.7]
    assert [pattern["share"] for pattern in seen_plus["patterns"]] == pytest.approx([11 / 18, 11 / 18, 5 / 18] * 2)


def test_what_makes_up_for_left_out_blocks_is_shown(
    plus: tuple[dict[str, Any], Path], seen_plus: dict[str, Any], found: dict[str, Any]
) -> None:
    """Beside the patterns, by step, by layer and head, and in the video view; nothing of it for plain AdaSpa."""
    names = {path.name for path in plus[1].iterdir()}
    assert {"mass.png", "error.png", "layer0-head1.png"} < names
    text = (plus[1] / "index.html").read_text(encoding="utf-8")
    for words in (
        "Seen through summaries, mean of steps 0 to 2",
        "Error, repaired",
        "mask+\u200bsummaries",
        "Crosses:",
    ):
        assert words in text
    for mask in seen_plus["masks"]:
        compensated = mask["compensated"]
        assert list(compensated["errors"]) == ["kept blocks", "with summaries", "repaired"]
        for head in range(2):
            kept, summaries, repaired = (errors[head] for errors in compensated["errors"].values())
            assert kept > summaries > repaired > 0
            assert 0 < compensated["exact"][head] < 1 - compensated["pooled"][head] < 1
    for pattern in seen_plus["patterns"]:
        assert pattern["recall"]["mask"] < pattern["recall"]["mask+summaries"] < 1
        assert f"seen {pattern['recall']['mask+summaries']:.3f}" in text
    (view_data,) = re.findall(r'id="view-data">(.*?)</script>', text)
    for shown in json.loads(view_data)["views"].values():
        assert len(shown["pooled"]) == len(shown["recall"])
        assert all(
            0 <= pooled <= 1.001 - recall for pooled, recall in zip(shown["pooled"], shown["recall"], strict=True)
        )
    assert all(mask["compensated"] is None for mask in found["masks"])


def test_recall_is_of_all_rows_where_a_search_weighs_some(plus: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """The mask is that of the run; of the rows that chose it, it recalls more than of all."""
    flags = plus[0] | {"search_rows": 8, "decode": False}
    result = probe(
        load_pipeline(resolve(flags).config.model), resolve(flags), ProbeRequest((0,), (1,), (0,), 0, 8, None),
        Listener(), [PROMPT],
    )  # fmt: skip
    for search in first_searches(flags, tmp_path):
        record = result.first.records[search["layer"], 0]
        assert record.density == search["density"]
        assert all(exact < rough for exact, rough in zip(record.recall, search["recall"], strict=True))


def test_the_page_of_another_order_says_where_blocks_are(plus: tuple[dict[str, Any], Path]) -> None:
    text = (plus[1] / "index.html").read_text(encoding="utf-8")
    loads_nothing(text, read(text))
    for words in (
        "16 tokens along a Hilbert curve",
        "leave out 40 to 70 % of the video",
        "one budget for all rows and heads of a layer, chosen by output error",
    ):
        assert words in text
    data = json.loads(re.findall(r'id="view-data">(.*?)</script>', text)[0])
    layout = TokenLayout(3, 8, 12, 11, "last", "hilbert")
    blocks = np.frombuffer(zlib.decompress(base64.b64decode(data["tokenBlocks"])), np.int32)
    assert blocks.tolist() == (video_order(layout).backward // 16).tolist()


def test_a_mask_kept_recalls_less_than_a_new_one_of_the_same_size(found: dict[str, Any]) -> None:
    later = [mask for mask in found["masks"] if mask["step"] == 3]
    assert sum(map(sum, (mask["reused"] for mask in later))) < sum(map(sum, (mask["recall"] for mask in later)))


def test_patterns_keep_their_order(found: dict[str, Any]) -> None:
    assert [(p["layer"], p["head"], p["step"]) for p in found["patterns"]] == [
        (layer, 1, step) for layer in (0, 3) for step in (1, 3)
    ]
    for pattern in found["patterns"]:
        recall = pattern["recall"]
        assert set(recall) == {"oracle", "block", "column", "diagonal", "diagonal+column"}
        assert recall["oracle"] >= max(recall.values()) - 1e-6
        assert pattern["share"] == pytest.approx(2 / 3)  # two of three blocks are the nearest to a half
        assert all(0 < value <= 1 for value in recall.values())


def test_masks_are_tried_on_the_videos_after_their_own(found: dict[str, Any]) -> None:
    """Also where the text is longer, whose blocks are kept. No mask of as many blocks beats a video's own."""
    assert found["videos"] == [{"prompt": prompt, "seed": seed} for prompt in PROMPTS for seed in (0, 1)]
    table = found["across"]
    own = [mask["recall"] for mask in found["masks"] if mask["step"] == 1]
    assert table[0][0] == pytest.approx(np.mean(own), abs=1e-5)
    for row in range(4):
        assert all((table[row][column] is None) == (column < row) for column in range(4))
        assert all(0 < table[row][column] <= table[column][column] + 2e-6 for column in range(row, 4))


def test_the_page_loads_nothing_and_holds_every_number(page: tuple[str, Page], found: dict[str, Any]) -> None:
    text, parsed = page
    loads_nothing(text, parsed)
    words = "".join(parsed.text)
    for pattern in found["patterns"]:
        for value in pattern["recall"].values():
            assert f"recall {value:.3f}" in words
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert len(images) == GRID[0] + 6 * 4
    assert [tag for tag, _ in parsed.tags].count("canvas") == GRID[0]


def test_the_video_view_holds_the_masks(page: tuple[str, Page], found: dict[str, Any]) -> None:
    (text,) = re.findall(r'<script type="application/json" id="view-data">(.*?)</script>', page[0])
    data = json.loads(text)
    layout = TokenLayout(**found["layout"])
    assert tuple(data["grid"]) == (layout.frames, layout.height, layout.width) == GRID
    assert data["query"] == [1, 2, 3]
    assert len(data["views"]) == 4
    blocks, video = data["blocks"], range(*data["video"])
    assert blocks == layout.blocks(16)
    for layer in (0, 3):
        for step in (1, 3):
            (mask,) = [m for m in found["masks"] if (m["layer"], m["step"]) == (layer, step)]
            shown = data["views"][f"layer {layer}, head 1, step {step}"]
            kept = np.frombuffer(zlib.decompress(base64.b64decode(shown["blocks"])), np.uint8).reshape(blocks, blocks)
            assert (kept > 0).mean() == pytest.approx(mask["density"][1], abs=1e-5)
            assert (kept[:, video.stop :] > 0).all()  # text is always kept
            assert len(shown["recall"]) == blocks
            assert all(0 < value <= 1 for value in shown["recall"])


def test_a_query_tokens_blocks_are_painted_where_they_stand() -> None:
    layout = TokenLayout(2, 2, 4, 3, "first")
    row = torch.tensor([0, 255, 0, 128, 7], dtype=torch.uint8)  # blocks of 4: the first token of video is token 3
    assert view.query_block(layout, 4, (1, 1, 2)) == (3 + 8 + 4 + 2) // 4
    strength = view.token_strength(row, layout, 4)
    assert strength.flatten().tolist() == [row[(3 + token) // 4] for token in range(16)]
    frames = np.full((2, 20, 40, 3), 100, np.uint8)
    sheet = view.paint(frames, strength, (1, 1, 2))
    shown = {
        tuple(colour): number
        for colour, number in zip(*np.unique(sheet.reshape(-1, 3), axis=0, return_counts=True), strict=True)
    }
    token = 10 * 10  # pixels of a token
    assert shown[0, 230, 255] == token  # the query token
    assert shown[216, 130, 25] == 4 * token  # block 1, of strength 255: 100 to (255, 140, 0) by three quarters
    (dark,) = (number for colour, number in shown.items() if max(colour) < 60)
    assert dark == (1 + 4) * token  # what is left out of blocks 0 and 2
    block_1, queried = (np.argwhere((sheet == colour).all(-1)) for colour in ((216, 130, 25), (0, 230, 255)))
    assert block_1[:, 1].max() < queried[:, 1].min(), "the query token is in the second frame, right of the first"


def test_along_a_curve_a_block_is_painted_where_its_tokens_stand() -> None:
    layout = TokenLayout(3, 4, 5, 3, "first", "hilbert")
    forward = video_order(layout).forward  # the token that stands at each place after the text
    row = torch.arange(16, dtype=torch.uint8)  # blocks of 4
    strength = view.token_strength(row, layout, 4)
    for place, token in enumerate(forward.tolist()):
        where = np.unravel_index(token, (3, 4, 5))
        assert strength[where] == (3 + place) // 4
        assert view.query_block(layout, 4, (int(where[0]), int(where[1]), int(where[2]))) == (3 + place) // 4


def test_weights_become_strengths_by_their_root() -> None:
    sums = torch.tensor([[4.0, 1.0, 0.0, 9.0]])
    kept = torch.tensor([[True, True, True, True]])
    assert view_of(sums, kept, range(3)).tolist() == [[255, 128, 1, 255]]
    assert view_of(sums, ~kept, range(3)).tolist() == [[0, 0, 0, 0]]


def test_colours_span_three_orders_of_magnitude() -> None:
    weights = torch.tensor([[1.0, 1e-3], [1e-6, 0.0]], dtype=torch.float64)
    assert colours(weights, weights).tolist() == [[239, 1], [1, 0]]
    assert colours(torch.zeros(2, 2), torch.zeros(2, 2)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(("text", "fits"), [(11, True), (27, True), (12, False)])
def test_a_mask_serves_a_video_whose_blocks_hold_the_same_tokens(text: int, fits: bool) -> None:
    """Text of 11 and of 27 tokens in front leaves the video's place in its blocks of 16 alike."""
    own, other = TokenLayout(2, 8, 8, 11, "first"), TokenLayout(2, 8, 8, text, "first")
    mask = torch.rand(1, own.blocks(16), own.blocks(16), generator=torch.Generator().manual_seed(0)) < 0.3
    kept = PackedMask.of(BlockMask.from_bool(mask, (16, 16)), own)
    sums = torch.ones(1, other.blocks(16), other.blocks(16))
    recall = kept.recall_on(sums, other, (16, 16))
    assert (recall is not None) == fits
    if recall is not None:
        video = own.video_blocks(16)
        part = mask[0, video.start :, video.start :].sum()
        expected = (sums.numel() - len(video) ** 2 + part) / sums.numel()
        assert float(recall) == pytest.approx(float(expected))


def test_the_pipeline_is_as_it_was_and_others_do_not_run_to_their_end(hunyuan_folder: Path, tmp_path: Path) -> None:
    resolved = resolve(settings(hunyuan_folder, tmp_path))
    pipe = load_pipeline(resolved.config.model)
    before = [type(p) for p in pipe.transformer.attn_processors.values()]
    listener = Listener()
    result = probe(pipe, resolved, ASKED, listener, [PROMPT])
    assert isinstance(result, ProbeResult)
    assert [type(p) for p in pipe.transformer.attn_processors.values()] == before
    steps = [told[1] for told in listener.heard if told[0] == "step_done"]
    assert steps == [0, 1, 2, 3, 0, 1]
    assert result.frames is not None
    assert result.frames.shape == (5, 32, 48, 3)


def test_text_in_front_and_guidance_in_one_batch(hunyuan_folder: Path, tmp_path: Path) -> None:
    """CogVideoX: the conditional rows alone are looked at, and its video begins within a block."""
    flags = settings(hunyuan_folder, tmp_path, height=64, width=96, frames=9, decode=False)
    asked = ProbeRequest((1,), (0,), (0, 2), 2, 16, (1, 3, 5))
    result = probe(cogvideox(), resolve(flags), asked, Listener(), [PROMPT])
    assert set(result.first.records) == {(layer, step) for layer in range(2) for step in (0, 2)}
    assert result.first.records[0, 0].reused is None  # before the reference step there is no mask to keep
    layout = result.first.layout
    assert layout is not None
    assert layout.video_start == 226
    picture = result.first.pictures[1, 0, 2]
    cell = cell_size(layout.video_tokens, 16)
    whole, blocks = (mass(picture.means[name], layout.video_tokens, cell) for name in ("weights", "block"))
    assert blocks / whole == pytest.approx(picture.recall["block"], rel=1e-4)
    assert (picture.view[:, : 226 // 16 + 1] > 0).all()  # text is always kept


def test_pictures_of_weights_do_not_depend_on_the_token_order(hunyuan_folder: Path, tmp_path: Path) -> None:
    """Dense attention is the same in any order; text first and learned positions too. Blocks alone are others."""
    flags = settings(hunyuan_folder, tmp_path, height=64, width=96, frames=9, decode=False, seed=0)
    asked = ProbeRequest((1,), (0,), (0, 2), 2, 16, None)
    pipes = {"hunyuan": load_pipeline(resolve(flags).config.model), "cogvideox": cogvideox(), "1.0": cogvideox("1.0")}
    for name, pipe in pipes.items():
        raster, hilbert = (
            probe(pipe, resolve(flags | {"token_order": order}), asked, Listener(), [PROMPT]).first.pictures
            for order in ("raster", "hilbert")
        )
        for at, picture in raster.items():
            weights, expected = hilbert[at].means["weights"], picture.means["weights"]
            torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-7, msg=name)
            assert hilbert[at].recall["block"] != pytest.approx(picture.recall["block"], abs=1e-4), name


def test_a_second_look_gets_a_folder_of_its_own(hunyuan_folder: Path, tmp_path: Path) -> None:
    resolved = resolve(small_run(hunyuan_folder, tmp_path, decode=False))
    asked = ProbeRequest(None, None, (0,), 0, 8, None)
    folders = [visualize(resolved, asked, Listener(), [PROMPT]) for _ in range(2)]
    assert folders[1].name == f"{folders[0].name}-2"
    assert not (folders[0] / "video.mp4").exists()  # it ended in latents
    assert "<video" not in (folders[0] / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (ProbeRequest((4,), None, (0,), 0, 8, None), "no layer 4"),
        (ProbeRequest(None, (0, 2), (0,), 0, 8, None), "no head 2"),
        (ProbeRequest(None, None, (0,), 0, 8, (2, 0, 0)), "query 2,0,0 is outside the video of 2 x 4 x 6"),
        (ProbeRequest(None, None, (0,), 0, 8, (0, 4, 0)), "query 0,4,0 is outside"),
    ],
)
def test_what_is_not_there_is_refused_and_leaves_nothing(
    hunyuan_folder: Path, tmp_path: Path, asked: ProbeRequest, message: str
) -> None:
    resolved = resolve(small_run(hunyuan_folder, tmp_path / "out"))
    with pytest.raises(ConfigError, match=message):
        visualize(resolved, asked, Listener(), [PROMPT])
    assert not (tmp_path / "out").exists()


def test_more_views_than_a_page_can_hold_are_refused() -> None:
    layout = TokenLayout(33, 45, 80, 256, "last")
    few = Choice((0, 30, 59), (0, 12), (0, 10, 49), 10, 256)
    check_grid(layout, few, 64)
    many = Choice(tuple(range(60)), (0, 12), (0, 10, 49), 10, 256)
    with pytest.raises(ConfigError, match="360 views of 1861 x 1861 blocks are too many") as caught:
        check_grid(layout, many, 64)
    assert "at most 19 views" in str(caught.value.hint)


def test_a_video_of_less_than_a_block_is_refused(hunyuan_folder: Path, tmp_path: Path) -> None:
    resolved = resolve(small_run(hunyuan_folder, tmp_path / "out", block_size=512))
    with pytest.raises(ConfigError, match="video tokens fill no block of 512"):
        visualize(resolved, ProbeRequest((0,), (1,), (1,), 1, 8, None), Listener(), [PROMPT])
    assert not (tmp_path / "out").exists()

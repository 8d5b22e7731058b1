"""The text encoders' lessons before any clip: questions and answers, and how the weights go on from there."""

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scripts.tiny_world.plan import held_out_scenes, plan_clips
from scripts.tiny_world.words import COLORS, MOTIONS, SHAPES, Scene, Thing
from scripts.train_world import __main__ as program
from scripts.train_world import checkpoint, reading
from scripts.train_world.autoencoder import VaeConfig, build_vae
from scripts.train_world.earlier import RECORD, begin_with, first_weights
from scripts.train_world.loop import LoopConfig
from scripts.train_world.network import TransformerConfig, build_modules
from scripts.train_world.pool import Geometry, PoolConfig, worded
from scripts.train_world.reading import answers_of, train_text
from scripts.train_world.recipe import Share, WorldStage
from scripts.train_world.text import TextConfig, build_text, embed, states_after_template, tokenize
from scripts.train_world.transformer import train_stage

CPU = torch.device("cpu")
TEXT = TextConfig(llama_width=32, llama_heads=2, clip_width=16, clip_heads=2)
MODEL = TransformerConfig(heads=2, head_dim=32, dual_layers=1, single_layers=1, rope_axes=(8, 12, 12), text=TEXT)
LOOP = LoopConfig(steps=9, batch=16, warmup=1)  # more steps than are drawn at once
FIRST = WorldStage("small", (Share(Geometry(5, 64, 64), 1.0, PoolConfig(4, 4, 2, 4)),), shift=3.0, after=("text",))


@pytest.fixture(autouse=True, scope="module")
def _few_held_out_scenes() -> Iterator[None]:
    """Measuring takes longer than the lessons otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        scenes = reading.held_out_scenes()[::32]
        patch.setattr(reading, "held_out_scenes", lambda: scenes)
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with lessons that were learnt, and with some autoencoder."""
    folder = tmp_path_factory.mktemp("reading")
    build_vae(VaeConfig(channels=(4, 4, 8, 8))).save_pretrained(folder / "vae" / "model")
    assert train_text(MODEL, LOOP, folder, CPU)
    return folder


def test_answers_say_what_is_in_a_scene() -> None:
    things = (Thing("star", "red", "left", "small", "fast"), Thing("ring", "blue", "still"))
    found = answers_of([Scene(things, "green", "striped", "up", "behind")])
    colors = list(COLORS)
    red, blue = found.objects[0, colors.index("red")], found.objects[0, colors.index("blue")]
    assert red.tolist() == [1, SHAPES.index("star"), MOTIONS.index("left"), 0, 2, -100]
    assert blue.tolist() == [1, SHAPES.index("ring"), MOTIONS.index("still"), 1, 1, -100]
    assert [row.tolist() for row in found.objects[0]].count([0, *[-100] * 5]) == 6
    assert found.ground.tolist() == [[4, 2, 3, 1]]
    found = answers_of([Scene(things, "green"), Scene(things[1:], "green")])
    places = found.objects[:, [colors.index("red"), colors.index("blue")], -1]
    assert places.tolist() == [[0, 1], [-100, -100]]


def test_a_question_that_no_caption_answers_costs_nothing() -> None:
    answers = answers_of([Scene((Thing("star", "red", "left"),), "green")])
    said = reading.Questions(8, 8).of_tokens(torch.zeros(1, 3, 8))
    assert reading._loss(said, answers).isfinite()


def test_the_template_is_read_once_with_the_same_result() -> None:
    text = build_text(TEXT, 0)
    tokens = tokenize(text, ["a red circle moves left", "a blue circle moves up"])
    whole, _ = embed(text.encoder, text.encoder_2, tokens.llama, tokens.clip)
    torch.testing.assert_close(states_after_template(text.encoder, tokens.llama), whole, atol=1e-5, rtol=1e-5)


def test_resumed_lessons_equal_whole_ones(work: Path, tmp_path: Path) -> None:
    assert not train_text(MODEL, dataclasses.replace(LOOP, max_minutes=0.0), tmp_path, CPU)
    assert train_text(MODEL, LOOP, tmp_path, CPU)
    for group in ("raw", "ema"):
        one, other = checkpoint.load_group(work / "text", group), checkpoint.load_group(tmp_path / "text", group)
        assert one is not None
        assert other is not None
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_lessons_are_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand captions are enough for most patterns, shapes and many a background of scenes never trained on."""
    scenes = held_out_scenes()[::8]
    monkeypatch.setattr(reading, "held_out_scenes", lambda: scenes)
    longer = LoopConfig(steps=300, batch=32, warmup=4, learning_rate=4e-3, ema=0.9)
    assert train_text(MODEL, longer, tmp_path, CPU)
    right = json.loads((tmp_path / "text" / "metrics.json").read_text())["tokens"]
    assert right["background"] > 0.4
    assert right["pattern"] > 0.7
    assert right["shape"] > 0.5


def test_the_first_stage_begins_with_what_was_learnt(work: Path, tmp_path: Path) -> None:
    """In the same folder, or in another one that starts from the exported beginning, in float16."""
    learnt = checkpoint.load_group(work / "text", "ema")
    assert learnt is not None
    kept = {name: tensor for name, tensor in learnt.items() if not name.startswith("questions.")}
    still = LoopConfig(steps=1, batch=4, warmup=1, learning_rate=0.0, matrix_learning_rate=0.0)
    assert train_stage(MODEL, FIRST, still, work, CPU)
    begun = tmp_path / "begun"
    out = ["--out", str(begun)]
    assert program.main(["export", "--work", str(work), "--device", "cpu", "--stage", "text", *out]) == 0
    record = json.loads((begun / RECORD).read_text())
    assert record["stage"] == "text"
    assert record["text"] == json.loads((work / "text" / "metrics.json").read_text())
    assert [row["stage"] for row in record["stages"]] == ["text"]  # whatever came after it
    other = tmp_path / "other"
    other.mkdir()
    begin_with(begun, other)
    assert train_stage(MODEL, FIRST, still, other, CPU)
    untaught = checkpoint.module_tensors(build_modules(MODEL, 0)[0])
    for folder, rounded in ((work, False), (other, True)):
        own = checkpoint.load_group(folder / "small", "raw")
        assert own is not None
        assert own.keys() == untaught.keys()
        for name, tensor in own.items():
            first = kept.get(name, untaught[name])
            assert torch.equal(tensor, first.half().float() if rounded and name in kept else first), name


def test_lessons_that_were_not_learnt_are_not_exported(tmp_path: Path) -> None:
    (tmp_path / "earlier" / "vae").mkdir(parents=True)
    given = ["--work", str(tmp_path), "--device", "cpu", "--stage", "text", "--out", str(tmp_path / "out")]
    with pytest.raises(FileNotFoundError, match="no checkpoint of the stage 'text'"):
        program.main(["export", *given])


def test_what_the_lessons_leave_alone_is_handed_on(tmp_path: Path) -> None:
    (tmp_path / "earlier" / "transformer").mkdir(parents=True)
    blocks = {"blocks": torch.ones(2), "context_embedder": torch.ones(2)}
    save_file(blocks, tmp_path / "earlier" / "transformer" / "model.safetensors")
    taught = {"transformer.context_embedder": torch.zeros(2), "questions.asked": torch.zeros(2)}
    checkpoint.save_checkpoint(tmp_path / "text", {"ema": taught}, {"step": 1})
    found = first_weights(tmp_path, ("text",)) or {}
    expected = {"transformer.blocks": [1.0, 1.0], "transformer.context_embedder": [0.0, 0.0]}
    assert {name: tensor.tolist() for name, tensor in found.items()} == expected


def test_what_clips_were_trained_with_changes_little(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt, text = checkpoint.load_group(work / "text", "ema"), build_text(TEXT, 0)
    assert learnt is not None
    tokens = tokenize(text, ["a red star moves left and a blue ring rotates on a green background"])
    changes = []
    for weight, stages in ((100.0, ["text", "small"]), (0.0, ["text", "small"]), (100.0, ["text"])):
        monkeypatch.setattr(reading, "_KEPT_WEIGHT", weight)
        own = tmp_path / f"{weight}-{len(stages)}"
        (own / "earlier").mkdir(parents=True)
        (own / "earlier" / RECORD).write_text(json.dumps({"stages": [{"stage": name} for name in stages]}))
        monkeypatch.setattr(reading, "first_weights", lambda *_: learnt)
        assert train_text(MODEL, dataclasses.replace(LOOP, steps=24, learning_rate=1e-2), own, CPU)
        after = checkpoint.load_group(own / "text", "raw")
        assert after is not None
        read = []
        for weights in (learnt, after):
            modules, _ = build_modules(MODEL, 0)
            parts = {name: modules[name] for name in ("text_encoder", "text_encoder_2")}
            parts["transformer.context_embedder"] = modules["transformer"].context_embedder
            checkpoint.load_modules(parts, {n: t for n, t in weights.items() if not n.startswith("questions.")})
            with torch.no_grad():
                read.append(reading.Reader(parts, text).read(tokens, torch.tensor([500.0])))
        changes.append(float(reading.change(*read)))
    assert changes[0] < 0.2 * min(changes[1:]), changes
    assert changes[1] == changes[2]  # where there is nothing to keep, nothing is kept


def test_captions_are_worded_to_lengths() -> None:
    """Of the same scenes; and without a wish they stay as they are."""
    text = build_text(TEXT, 0)
    plan = plan_clips(24, 3)
    same = worded(text, plan, 1, random.Random(0))
    assert torch.equal(same.llama, tokenize(text, plan.captions).llama)
    fours = worded(text, plan, 4, random.Random(0))
    assert len(fours.length) == len(plan)
    assert (fours.length % 4 == 0).all()
    assert (same.length % 4 != 0).any()

"""The training on the drawn world, on the CPU with clips and models of a minimal size, in one process and in two."""

import argparse
import dataclasses
import json
import os
import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoPipeline
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from adaspa_cli.config.schema import ModelConfig
from adaspa_cli.config.vocabulary import vocabulary_of
from scripts.tiny_world.captions import every_wording, standard_caption
from scripts.tiny_world.plan import held_out_scenes
from scripts.train_world import __main__ as program
from scripts.train_world import checkpoint, vae
from scripts.train_world.autoencoder import VaeConfig, build_vae, load_vae, vae_loss
from scripts.train_world.card import write_card
from scripts.train_world.earlier import RECORD, begin_with, beginning_of, vae_folder
from scripts.train_world.evaluate import evaluate
from scripts.train_world.export import load_trained
from scripts.train_world.loop import LoopConfig
from scripts.train_world.network import TransformerConfig
from scripts.train_world.parallel import mean_gradients, rank, share, start, stop
from scripts.train_world.pool import Geometry, PoolConfig
from scripts.train_world.recipe import (
    LOOPS,
    MINUTES,
    MODEL,
    ORDER,
    STAGES,
    USUAL,
    VAE_STAGE,
    Share,
    VaeStage,
    WorldStage,
    batch_of,
    rate_share,
)
from scripts.train_world.reconstructions import judged_reconstructions, remake
from scripts.train_world.text import TextConfig
from scripts.train_world.transformer import train_stage
from scripts.train_world.vae import measure, train_vae
from scripts.train_world.warm import warm
from tests.processes import at_once

CPU = torch.device("cpu")
SMALL, WIDE = Geometry(9, 64, 64), Geometry(5, 64, 96)
TEXT = TextConfig(llama_width=32, llama_heads=2, clip_width=16, clip_heads=2)
VAE = VaeStage((SMALL, WIDE), (SMALL,), model=VaeConfig(channels=(4, 4, 8, 8)))
MODEL_TOY = TransformerConfig(heads=2, head_dim=32, dual_layers=1, single_layers=1, rope_axes=(8, 12, 12), text=TEXT)
POOL = PoolConfig(size=8, chunk=4, refill_every=2, encode_batch=4)
STAGE = WorldStage("full", (Share(SMALL, 0.5, POOL), Share(WIDE, 0.5, POOL)), shift=3.0, guidance=0.4)
LOOP = LoopConfig(steps=4, batch=4, warmup=1)


@pytest.fixture(scope="module", autouse=True)
def _measured_on_few_clips() -> Iterator[None]:
    """Of 128, measuring takes three times as long as training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae, "_MEASURED", 16)
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained VAE and a trained last stage."""
    folder = tmp_path_factory.mktemp("world")
    assert train_vae(VAE, LOOP, folder, CPU)
    assert train_stage(MODEL_TOY, STAGE, LOOP, folder, CPU)
    return folder


def assert_same_weights(one: Path, other: Path, *, atol: float = 0.0) -> None:
    for group in ("raw", "ema"):
        first, second = checkpoint.load_group(one, group), checkpoint.load_group(other, group)
        assert first is not None
        assert second is not None
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            torch.testing.assert_close(tensor, second[name], atol=atol, rtol=0.0, msg=name)


def test_resumed_runs_equal_whole_ones(work: Path, tmp_path: Path) -> None:
    interrupted = dataclasses.replace(LOOP, max_minutes=0.0)
    for train in (
        lambda loop: train_vae(VAE, loop, tmp_path, CPU),
        lambda loop: train_stage(MODEL_TOY, STAGE, loop, tmp_path, CPU),
    ):
        assert [train(interrupted), train(interrupted), train(LOOP)] == [False, False, True]
    assert_same_weights(tmp_path / "vae", work / "vae")
    assert_same_weights(tmp_path / "full", work / "full")


def exported(work: Path, out: Path, evaluation: Path | None = None) -> Path:
    """The folder that the command makes of the stage ``full``."""
    if evaluation is not None:
        (work / "full" / "evaluation.json").write_text(evaluation.read_text())
    assert program.main(["export", "--work", str(work), "--device", "cpu", "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("vae_too", [True, False])
def test_a_run_goes_on_from_a_model_as_it_ships(work: Path, tmp_path: Path, vae_too: bool) -> None:
    model, own = exported(work, tmp_path / "model"), tmp_path / "own"
    still = LoopConfig(steps=1, batch=4, warmup=1, learning_rate=0.0, matrix_learning_rate=0.0)
    own.mkdir()
    begin_with(model, own)
    if vae_too:
        assert train_vae(VAE, still, own, CPU)
        shipped = load_vae(model / "vae", CPU).state_dict()
        for name, value in (checkpoint.load_group(own / "vae", "raw") or {}).items():
            torch.testing.assert_close(value, shipped[name.removeprefix("vae.")], atol=0.0, rtol=0.0)
    assert train_stage(MODEL_TOY, STAGE, still, own, CPU)
    first, second = checkpoint.load_group(work / "full", "ema"), checkpoint.load_group(own / "full", "raw")
    assert first is not None
    assert second is not None
    assert first.keys() == second.keys()
    assert all(torch.equal(value.half().float(), second[name]) for name, value in first.items())
    again = exported(own, tmp_path / "again")
    record = json.loads((again / RECORD).read_text())
    stages = [(row["stage"], row["steps"]) for row in record["stages"]]
    assert stages == [("vae", 4), ("full", 4), *([("vae", 1)] if vae_too else []), ("full", 1)]
    assert record["vae"]["steps"] == (1 if vae_too else 4)
    assert f"| `full` | 1 | 4 | 1 | CPU | 0 | {record['stages'][-1]['minutes']} |" in (again / "README.md").read_text()


def test_a_stage_gone_through_again_forgets_less(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on with the guidance that is there, at lower rates and with other clips."""
    model, seen = exported(work, tmp_path / "model"), {}

    def record(_: object, stage: WorldStage, loop: LoopConfig, *__: object) -> bool:
        seen[stage.name] = stage, loop
        return True

    monkeypatch.setattr(program, "train_stage", record)
    monkeypatch.setattr(program, "train_vae", lambda *given: record(None, *given[:2]))
    given = ["--device", "cpu", "--work", str(tmp_path / "own"), "--start-from", str(model)]
    for name in ("decoder", "middle", "full"):
        assert program.main([name, *given]) == 0
        stage, loop = seen[name]
        rate = (0.5 if name == "full" else 1.0) * rate_share(name, loop.batch)
        assert loop.learning_rate == LOOPS[name].learning_rate * rate
        assert loop.matrix_learning_rate == LOOPS[name].matrix_learning_rate * rate
        assert loop.taught_rate == (1.0 if name == "full" else 0.1)
        assert loop.seed == 1
        if isinstance(stage, WorldStage):  # guidance 0.4 is the model's, 0.6 the recipe's for the last stage
            assert (stage.guidance, stage.guidance_from) == ({"middle": 0.4, "full": 0.6}[name], 0.0)
    assert program.main(["full", *given, "--seed", "5", "--guidance", "0.1", "--learning-rate", "0.2"]) == 0
    stage, loop = seen["full"]
    assert (loop.seed, stage.guidance, loop.learning_rate) == (5, 0.1, 0.2)
    own = ["--device", "cpu", "--work", str(tmp_path / "other")]
    assert program.main(["full", *own]) == 0
    stage, loop = seen["full"]
    assert (loop.seed, stage.guidance_from, loop.taught_rate) == (0, STAGES["full"].guidance_from, 0.1)


def test_a_model_has_the_guidance_of_its_last_stage(work: Path, tmp_path: Path) -> None:
    model = exported(work, tmp_path / "model")
    assert json.loads((model / RECORD).read_text())["guidance"] == STAGE.guidance
    begin_with(model, tmp_path)
    after = ("text", "middle")
    assert beginning_of(tmp_path, "full", after).guidance == STAGE.guidance
    for state, guidance in (({"guidance": 0.2, "done": True}, 0.2), ({"guidance": 0.2, "done": False}, 0.0)):
        checkpoint.save_checkpoint(tmp_path / "middle", {}, {"step": 1, **state})
        assert beginning_of(tmp_path, "full", after).guidance == guidance


def test_levels_of_training_and_of_sampling_are_two_things(work: Path, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model").symlink_to(work / "vae" / "model")
    still = LoopConfig(steps=1, batch=4, warmup=1)
    assert train_stage(MODEL_TOY, dataclasses.replace(STAGE, sampled_with=2.0), still, tmp_path, CPU)
    model = exported(tmp_path, tmp_path / "out")
    assert json.loads((model / "scheduler" / "scheduler_config.json").read_text())["shift"] == 2.0
    assert json.loads((model / RECORD).read_text())["shift"] == 2.0
    other = train_stage(
        MODEL_TOY, dataclasses.replace(STAGE, name="other", shift=9.0, sampled_with=3.0), still, tmp_path, CPU
    )
    plain = train_stage(MODEL_TOY, dataclasses.replace(STAGE, name="plain"), still, tmp_path, CPU)
    assert other
    assert plain
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "other", tmp_path / "plain")


def test_a_stage_needs_blocks_and_not_only_words(work: Path, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model").symlink_to(work / "vae" / "model")
    checkpoint.save_checkpoint(tmp_path / "text", {"ema": {"text_encoder.norm.weight": torch.ones(32)}}, {"step": 1})
    last = dataclasses.replace(STAGE, after=("text", "small"))
    with pytest.raises(FileNotFoundError, match="train the stage small first"):
        train_stage(MODEL_TOY, last, LOOP, tmp_path, CPU)


def test_other_steps_can_be_judged(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shifts = exported(work, tmp_path / "model"), []
    card = (model / "README.md").read_text()

    def seen(pipe: HunyuanVideoPipeline, *parts: object, **more: object) -> object:
        shifts.append(pipe.scheduler.config.shift)
        return evaluate(pipe, *parts, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(program, "evaluate", seen)
    given = ["--device", "cpu", "--folder", str(model), "--limit", "2", "--steps", "2", "--out", str(tmp_path / "out")]
    assert program.main(["evaluate", *given, "--shift", "9"]) == 0
    assert (model / "README.md").read_text() == card
    assert program.main(["evaluate", *given]) == 0
    assert (model / "README.md").read_text() != card
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["shift"] == STAGE.shift
    assert shifts == [9.0, STAGE.shift]


def test_a_decoder_is_trained_alone(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = dataclasses.replace(VAE, name="decoder", decoder_only=True)
    with pytest.raises(FileNotFoundError, match="no trained VAE"):
        train_vae(stage, LOOP, tmp_path, CPU)
    folders = [tmp_path / name for name in ("whole", "resumed")]
    for folder, loops in zip(folders, ([LOOP], [dataclasses.replace(LOOP, max_minutes=0.0), LOOP]), strict=True):
        (folder / "vae").mkdir(parents=True)
        (folder / "vae" / "model").symlink_to(work / "vae" / "model")
        done = [train_vae(stage, loop, folder, CPU) for loop in loops]
        assert done == [number == len(loops) - 1 for number in range(len(loops))]
        assert vae_folder(folder) == folder / "decoder" / "model"
    assert_same_weights(folders[0] / "decoder", folders[1] / "decoder")
    before, after = (load_vae(vae_folder(folder), CPU) for folder in (work, folders[0]))
    assert after.config.scaling_factor == before.config.scaling_factor
    same = {name: torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items()}
    assert {name.split(".")[0] for name, equal in same.items() if equal} == {"encoder", "quant_conv"}
    assert {name.split(".")[0] for name, equal in same.items() if not equal} == {"decoder", "post_quant_conv"}
    earlier, metrics = (json.loads((vae_folder(f) / "metrics.json").read_text()) for f in (work, folders[0]))
    assert (metrics["stage"], metrics["steps"]) == ("decoder", LOOP.steps)
    assert metrics["channel_std"] == earlier["channel_std"]  # of the same latents
    begin = {name: earlier[name] for name in ("psnr_db", "moving_edges_db")}
    assert f"decoder begins with {begin}" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="remove it to train the encoder on"):
        train_vae(VAE, LOOP, folders[0], CPU)


def test_a_stage_begins_with_the_one_before_it(work: Path, tmp_path: Path) -> None:
    still = LoopConfig(steps=1, batch=4, warmup=1, learning_rate=0.0, matrix_learning_rate=0.0)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model").symlink_to(work / "vae" / "model")
    (tmp_path / "first").symlink_to(work / "full")
    last = dataclasses.replace(STAGE, name="last", after=("first", "second"))
    assert train_stage(MODEL_TOY, last, still, tmp_path, CPU)
    first, own = checkpoint.load_group(work / "full", "ema"), checkpoint.load_group(tmp_path / "last", "raw")
    assert first is not None
    assert own is not None
    assert all(torch.equal(value, own[name]) for name, value in first.items())
    (tmp_path / "first").unlink()
    with pytest.raises(FileNotFoundError, match="train the stage second first"):
        train_stage(MODEL_TOY, dataclasses.replace(last, name="other"), still, tmp_path, CPU)


def test_what_is_no_model_of_the_training_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(FileNotFoundError, match=r"training\.json is missing"):
        begin_with(tmp_path / "model", tmp_path)
    assert not (tmp_path / "earlier").exists()


def test_moving_edges_weigh_more() -> None:
    """Where nothing moves the weight changes nothing; where something does, the loss grows with it."""
    torch.manual_seed(0)
    model = build_vae(VAE.model)
    clips = torch.rand(1, 3, 9, 64, 64) * 2.0 - 1.0
    still = torch.zeros(1, 1, 9, 64, 64)
    still[..., 20:40, 20:40] = 1.0
    moving = torch.stack([still[:, :, 0].roll(3 * frame, dims=-1) for frame in range(9)], dim=2)

    def loss(cover: Tensor, weight: float) -> float:
        with torch.no_grad():
            return float(vae_loss(model, clips, cover, 0.0, torch.Generator().manual_seed(0), moving_weight=weight))

    assert loss(still, 6.0) == loss(still, 0.0)
    assert loss(moving, 6.0) > loss(moving, 0.0)


def test_measures_tell_frames_apart(work: Path) -> None:
    metrics = json.loads((work / "vae" / "model" / "metrics.json").read_text())
    assert len(metrics["moving_edges_db"]) == 5
    assert 3.0 < metrics["psnr_db"] < 40.0
    model = build_vae(VAE.model)
    assert measure(model, SMALL, 4) == measure(model, SMALL, 4)


def test_evaluation_and_export(work: Path, tmp_path: Path) -> None:
    trained = load_trained(work, "full", CPU)
    report = evaluate(trained.pipe, SMALL, tmp_path / "evaluation", steps=1, batch=2, limit=3)
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["records"] == report["records"]  # type: ignore[index]
    told = json.loads((tmp_path / "evaluation" / "sheets.json").read_text())
    assert set(told.values()) <= {standard_caption(scene) for scene in held_out_scenes()}
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == [
        "evaluation.json",
        "sheet-0.png",
        "sheets.json",
    ]
    out = exported(work, tmp_path / "model", tmp_path / "evaluation" / "evaluation.json")
    card = (out / "README.md").read_text()
    assert "| two right |" in card or "| color |" in card
    assert "192 to 320 height" in card
    (out / "README.md").write_text("")
    write_card(out, report)
    assert (out / "README.md").read_text() == card
    pipe = HunyuanVideoPipeline.from_pretrained(out, dtype=torch.float32)
    assert pipe.transformer.config.num_layers == 1
    found = vocabulary_of(ModelConfig(weights=str(out)))
    assert found is not None
    assert found.unknown([*every_wording()[::50], *map(standard_caption, held_out_scenes())]) == []
    assert found.trained["frames"] == (17, 49)


def test_two_processes_train_alike_and_go_on(work: Path, tmp_path: Path) -> None:
    """Both draw clips of their own and end with the same weights; a second start resumes."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model").symlink_to(work / "vae" / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = [tmp_path / f"told-{number}" for number in range(2)]

    def process(number: int) -> None:
        os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": str(number)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        sys.stdout = told[number].open("w", buffering=1)
        device = start("cpu")
        parameter = torch.nn.Parameter(torch.zeros(3))
        parameter.grad = torch.full((3,), float(rank()))
        mean_gradients([parameter])
        assert parameter.grad.tolist() == [0.5] * 3
        longer = dataclasses.replace(LOOP, steps=12)
        assert not train_stage(MODEL_TOY, STAGE, dataclasses.replace(longer, max_minutes=0.0), tmp_path, device)
        assert train_stage(MODEL_TOY, STAGE, longer, tmp_path, device)
        pipe = load_trained(tmp_path, "full", device).pipe
        report = evaluate(pipe, SMALL, tmp_path / "evaluation", steps=1, batch=2, limit=3)
        assert (report is None) == (rank() == 1)
        stop()

    assert at_once(partial(process, 0), partial(process, 1)) == [0, 0]
    assert "resumed full at step 8" in told[0].read_text()
    assert "resumed" not in told[1].read_text()
    state = checkpoint.load_state(tmp_path / "full")
    assert state is not None
    assert (state["step"], state["processes"], state["batch"]) == (12, 2, 4)
    judged = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert [record["number"] for record in judged["records"]] == [0, 1, 2]
    assert judged["right"]["background"][1] == 3


def test_the_last_stage_gets_what_a_deadline_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, float]] = []

    def record(options: argparse.Namespace, _: torch.device) -> bool:
        ran.append((options.command, options.scale * MINUTES.get(options.command, 0.0)))
        return True

    def evaluated(options: argparse.Namespace, _: torch.device) -> bool:
        ran.append((f"evaluate {options.stage}", 0.0))
        return True

    for name in ORDER:
        monkeypatch.setitem(program._COMMANDS, name, record)
    monkeypatch.setattr(program, "_evaluate", evaluated)
    assert program.main(["all", "--device", "cpu", "--deadline-minutes", "8"]) == 0
    assert [name for name, _ in ran] == [*USUAL, "evaluate full"]
    assert ran[0][1] == MINUTES["vae"]
    assert ran[-2][1] == pytest.approx(8 - program.EVALUATION_MINUTES, abs=0.01)
    ran.clear()
    assert program.main(["all", "--device", "cpu", "--stages", "vae:2,small:1.5", "--no-evaluation"]) == 0
    assert ran == [("vae", 2.0), ("small", pytest.approx(1.5))]
    with pytest.raises(SystemExit):
        program.main(["all", "--device", "cpu", "--stages", "vae,large"])


def test_each_kind_of_block_is_compiled_once(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For training, and for predictions without a caption: before the training and in it, whatever sizes come."""
    compiler = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    stage = dataclasses.replace(STAGE, compile=True, guidance_from=0.0)
    warm(MODEL_TOY, VAE.model, stage, LOOP.batch, CPU)
    assert capsys.readouterr().out.startswith("full: compiled in ")
    assert compiler.frame_count == 4
    (tmp_path / "vae").symlink_to(work / "vae")
    torch._dynamo.reset()
    assert train_stage(MODEL_TOY, stage, dataclasses.replace(LOOP, steps=6), tmp_path, CPU)
    assert compiler.frame_count == 8
    torch._dynamo.reset()


def test_what_an_autoencoder_spoils_is_counted(work: Path) -> None:
    geometry, vae = Geometry(17, 128, 128), load_vae(work / "vae" / "model", CPU)
    whole = judged_reconstructions(lambda clip: clip, geometry, 4, CPU)
    assert all(right == count for right, count in whole.values())
    untrained = judged_reconstructions(partial(remake, vae), geometry, 4, CPU)
    assert {name: count for name, (_, count) in untrained.items()} == {name: n for name, (_, n) in whole.items()}
    assert untrained["shape"][0] < whole["shape"][0]


def test_attention_is_timed_by_size_and_kernel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STAGES, "full", STAGE)
    assert program.main(["speed", "--part", "attention", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        f"{size.geometry} {name}" for size in STAGE.sizes for name in ("flash", "cudnn")
    ]
    assert all(" ms more at a new length" in line for line in lines)


def test_the_recipe_holds_together() -> None:
    assert set(LOOPS) == set(MINUTES) == set(ORDER)
    for number, (name, stage) in enumerate(STAGES.items()):
        assert name == stage.name
        assert stage.after == ("text", *tuple(STAGES)[:number])
        assert sum(size.share for size in stage.sizes) == pytest.approx(1.0)
        assert all(size.pool.size % size.pool.chunk == 0 for size in stage.sizes)
        assert all(size.geometry.frames % 4 == 1 for size in stage.sizes)
    assert MODEL.latent_channels == VAE_STAGE.model.latent_channels
    assert all(share(loop.batch) % 4 == 0 for loop in LOOPS.values())
    assert [batch_of(name, 2) for name in ("vae", "full")] == [LOOPS["vae"].batch, LOOPS["full"].batch // 2]
    assert rate_share("full", LOOPS["full"].batch // 4) == 0.5
    assert rate_share("vae", 16) == rate_share("full", LOOPS["full"].batch) == 1.0

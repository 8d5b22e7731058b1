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

from adaspa_cli.config.schema import ModelConfig
from adaspa_cli.config.vocabulary import vocabulary_of
from scripts.tiny_world.captions import every_wording, standard_caption
from scripts.tiny_world.plan import held_out_scenes
from scripts.train_tiny import checkpoint
from scripts.train_tiny.export import export, load_trained
from scripts.train_tiny.loop import LoopConfig
from scripts.train_tiny.parallel import mean_gradients, rank, share, start, stop
from scripts.train_tiny.pool import Geometry, PoolConfig
from scripts.train_tiny.text import TextConfig
from scripts.train_tiny.transformer import TransformerConfig
from scripts.train_tiny.vae import VaeConfig, build_vae, load_vae, vae_loss
from scripts.train_world import vae
from scripts.train_world.card import model_card, write_vocabulary
from scripts.train_world.evaluate import evaluate
from scripts.train_world.recipe import LOOPS, MINUTES, MODEL, STAGES, VAE_STAGE, Share, VaeStage, WorldStage
from scripts.train_world.transformer import train_stage
from scripts.train_world.vae import measure, train_vae
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
        patch.setattr(vae, "finish", partial(vae.finish, clips=16))
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


def test_a_run_goes_on_from_an_earlier_one(work: Path, tmp_path: Path) -> None:
    still = LoopConfig(steps=1, batch=4, warmup=1, learning_rate=0.0, matrix_learning_rate=0.0)
    assert train_vae(VAE, still, tmp_path, CPU, work)
    assert train_stage(MODEL_TOY, STAGE, still, tmp_path, CPU, work)
    model = load_vae(work / "vae" / "model", CPU).state_dict()
    for name, value in (checkpoint.load_group(tmp_path / "vae", "raw") or {}).items():
        torch.testing.assert_close(value, model[name.removeprefix("vae.")], atol=0.0, rtol=0.0)
    first, second = checkpoint.load_group(work / "full", "ema"), checkpoint.load_group(tmp_path / "full", "raw")
    assert first is not None
    assert second is not None
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    card = model_card(tmp_path, "full", {})
    for name in ("vae", "full"):
        assert [row.split(" | ")[1] for row in card.splitlines() if row.startswith(f"| {name} |")] == ["4", "1"]


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
    trained = load_trained(work, "full", CPU, every_wording())
    report = evaluate(trained.pipe, SMALL, tmp_path / "evaluation", steps=1, batch=2, limit=3)
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["records"] == report["records"]  # type: ignore[index]
    told = json.loads((tmp_path / "evaluation" / "sheets.json").read_text())
    assert set(told.values()) <= {standard_caption(scene) for scene in held_out_scenes()}
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == [
        "evaluation.json",
        "sheet-0.png",
        "sheets.json",
    ]
    (work / "full" / "evaluation.json").write_text((tmp_path / "evaluation" / "evaluation.json").read_text())
    out = tmp_path / "model"
    export(work, "full", out, corpus=every_wording(), card=model_card, words=lambda folder, _: write_vocabulary(folder))
    card = (out / "README.md").read_text()
    assert "| two right |" in card or "| color |" in card
    assert "192 to 320 height" in card
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
        pipe = load_trained(tmp_path, "full", device, every_wording()).pipe
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
    from scripts.train_world import __main__ as program

    ran: list[tuple[str, float]] = []

    def record(options: argparse.Namespace, _: torch.device) -> bool:
        ran.append((options.command, options.scale))
        return True

    for name in ("vae", "small", "full", "evaluate"):
        monkeypatch.setitem(program._COMMANDS, name, record)
    assert program.main(["all", "--device", "cpu", "--deadline-minutes", "8"]) == 0
    assert [name for name, _ in ran] == ["vae", "small", "full", "evaluate"]
    assert ran[0][1] == 1.0
    assert ran[2][1] == pytest.approx((8 - program.EVALUATION_MINUTES) / MINUTES["full"], abs=0.01)


def test_the_recipe_holds_together() -> None:
    assert set(LOOPS) == set(MINUTES) == {"vae", *STAGES}
    for stage in STAGES.values():
        assert sum(size.share for size in stage.sizes) == pytest.approx(1.0)
        assert all(size.pool.size % size.pool.chunk == 0 for size in stage.sizes)
        assert all(size.geometry.frames % 4 == 1 for size in stage.sizes)
    assert MODEL.latent_channels == VAE_STAGE.model.latent_channels
    assert all(share(loop.batch) % 4 == 0 for loop in LOOPS.values())

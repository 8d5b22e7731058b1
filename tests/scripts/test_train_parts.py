"""The parts of the training on the CPU, with clips and models of a minimal size."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoPipeline

from scripts.tiny_world.draw import draw
from scripts.tiny_world.plan import plan_clips
from scripts.train_world import checkpoint
from scripts.train_world import vae as vae_stage
from scripts.train_world.autoencoder import VaeConfig, build_vae, encode, fold_normalisation, load_vae
from scripts.train_world.export import export, load_trained
from scripts.train_world.fast_vae import speed_up
from scripts.train_world.flow import flow_loss, sample_sigmas
from scripts.train_world.loop import Loop, LoopConfig
from scripts.train_world.muon import BatchedMuon
from scripts.train_world.network import (
    StridedRope,
    TransformerConfig,
    block_matrices,
    build_modules,
    prepare_for_training,
    set_stride,
)
from scripts.train_world.pool import Batch, Geometry, LatentPool, PoolConfig, near_objects
from scripts.train_world.recipe import Share, VaeStage, WorldStage
from scripts.train_world.sampling import assemble_pipeline, load_folder, sample_captions
from scripts.train_world.text import TEMPLATE_TOKENS, Text, TextConfig, build_text, embed, tokenize
from scripts.train_world.transformer import train_stage
from scripts.train_world.vae import train_vae

CPU = torch.device("cpu")
VAE = VaeConfig(channels=(4, 4, 8, 8))
TEXT = TextConfig(llama_width=32, llama_heads=2, clip_width=16, clip_heads=2)
MODEL = TransformerConfig(heads=2, head_dim=32, dual_layers=1, single_layers=2, rope_axes=(8, 12, 12), text=TEXT)
GEOMETRY = Geometry(frames=9, height=32, width=32)
POOL = PoolConfig(size=16, chunk=8, refill_every=2, encode_batch=8)
STAGE = WorldStage("full", (Share(GEOMETRY, 1.0, POOL),), shift=3.0)
LOOP = LoopConfig(steps=4, batch=2, warmup=1)


@pytest.fixture(scope="module")
def text() -> Text:
    return build_text(TEXT, seed=0)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained VAE and a trained last stage."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae_stage, "_MEASURED", 16)
        assert train_vae(VaeStage((GEOMETRY,), (GEOMETRY,), model=VAE), LOOP, folder, CPU)
    assert train_stage(MODEL, STAGE, LOOP, folder, CPU)
    return folder


def assert_same_checkpoint(one: Path, other: Path) -> None:
    for group in ("raw", "ema", "optimizer"):
        first, second = checkpoint.load_group(one, group), checkpoint.load_group(other, group)
        assert first is not None
        assert second is not None
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


class TestText:
    def test_any_prompt_is_read(self, text: Text) -> None:
        tokens = tokenize(text, ["", "Ünï 漢字 🎈 \x00 {x} <|eot_id|>", "  a  b\n\nc ", "zyx" * 200])
        assert tokens.length[0] == 1
        assert tokens.clip.shape == (4, 77)

    def test_template_is_what_the_pipeline_crops(self, text: Text) -> None:
        tokens = tokenize(text, ["red circle going left"])
        words = text.tokenizer.convert_ids_to_tokens(tokens.llama[0, TEMPLATE_TOKENS:].tolist())
        assert [word.removeprefix("Ġ") for word in words] == ["red", "circle", "going", "left", "<|eot_id|>"]

    def test_embeddings_are_those_of_the_pipeline(self, text: Text) -> None:
        modules = {"text_encoder": text.encoder, "text_encoder_2": text.encoder_2, "transformer": None}
        pipe = HunyuanVideoPipeline(
            **modules,
            tokenizer=text.tokenizer,
            tokenizer_2=text.tokenizer_2,
            vae=build_vae(VAE),
            scheduler=None,
        )
        prompts = [
            "a red circle moves left on a blue background",
            "a pink star moves up on a white background",
        ]
        with torch.no_grad():
            embeds, pooled, mask = pipe.encode_prompt(prompts, device=CPU)
            tokens = tokenize(text, prompts)
            ours, ours_pooled = embed(text.encoder, text.encoder_2, tokens.llama, tokens.clip)
        assert mask.sum(dim=1).tolist() == tokens.length.tolist() == [ours.shape[1]] * 2
        torch.testing.assert_close(ours, embeds[:, : ours.shape[1]])
        torch.testing.assert_close(ours_pooled, pooled)


class TestTransformer:
    def test_unmasked_forward_is_the_masked_one(self) -> None:
        modules, _ = build_modules(MODEL, 0)
        model = modules["transformer"]
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():  # away from the start, where every block is the identity
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        length, padded = 7, 20
        embeds = torch.randn(2, padded, TEXT.llama_width, generator=generator)
        mask = (torch.arange(padded) < length).float().expand(2, -1)
        latents = torch.randn(2, 8, 3, 4, 4, generator=generator)
        given = {
            "timestep": torch.tensor([700.0, 90.0]),
            "pooled_projections": torch.randn(2, TEXT.clip_width),
        }
        with torch.no_grad():
            expected = model(latents, encoder_hidden_states=embeds, encoder_attention_mask=mask, **given).sample
            set_stride(model, 1.0)
            prepare_for_training(model)
            short = {"encoder_hidden_states": embeds[:, :length], "encoder_attention_mask": mask[:, :length]}
            actual = model(latents, **short, **given).sample
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)

    def test_strided_positions_are_the_middle_of_the_fine_ones(self) -> None:
        fine, coarse = (StridedRope((2, 2, 2), 256.0, stride) for stride in (1.0, 2.0))
        cos, _ = coarse(torch.empty(1, 8, 1, 1, 2))
        assert torch.allclose(cos[:, 4].arccos(), torch.tensor([0.5, 2.5]))
        assert fine(torch.empty(1, 8, 3, 4, 4))[0].shape == (48, 6)

    def test_sigmas_reach_both_ends(self) -> None:
        sigma = sample_sigmas(4000, 3.0, torch.Generator().manual_seed(0))
        assert 0.0 < sigma.min() < 0.05
        assert 0.99 < sigma.max() < 1.0
        assert 0.6 < sigma.median() < 0.85


class TestLoss:
    """One batch of noise on a model that predicts zero, so that the loss is that of the target alone."""

    @staticmethod
    def batch(*, near: bool, captioned: bool = True) -> Batch:
        generator = torch.Generator().manual_seed(1)
        latents = torch.randn(2, 8, 3, 4, 4, generator=generator)
        mask = torch.zeros(2, 1, 3, 4, 4, dtype=torch.bool)
        mask[..., :2] = near
        llama = torch.randint(5, 50, (2, TEMPLATE_TOKENS + 6), generator=generator)
        return Batch(latents, mask, llama, torch.randint(5, 50, (2, 77), generator=generator), captioned)

    @pytest.mark.parametrize("near", [False, True])
    def test_near_cells_weigh_more_where_the_noise_is_low(self, near: bool) -> None:
        modules, _ = build_modules(MODEL, 0)
        batch, generator = self.batch(near=near), torch.Generator().manual_seed(2)
        noise = torch.randn(batch.latents.shape, generator=generator)
        sigma = sample_sigmas(2, 3.0, generator)
        assert sigma.min() < 0.7 < sigma.max()
        weight = torch.where(batch.near & (sigma < 0.7).view(-1, 1, 1, 1, 1), 4.0, 1.0).expand_as(noise)
        expected = ((noise - batch.latents).square() * weight).sum() / weight.sum()
        with torch.no_grad():
            loss = flow_loss(modules, batch, 3.0, torch.Generator().manual_seed(2))
        torch.testing.assert_close(loss, expected)

    def test_guidance_moves_the_target_along_what_the_caption_changes(self) -> None:
        modules, text = build_modules(MODEL, 0)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in modules["transformer"].parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        empty = tokenize(text, [""])
        given = {"guidance": 0.4, "empty": (empty.llama, empty.clip)}

        def loss(batch: Batch, **changes: Any) -> float:
            with torch.no_grad():
                return float(flow_loss(modules, batch, 3.0, torch.Generator().manual_seed(0), **changes))

        captioned, uncaptioned = self.batch(near=False), self.batch(near=False, captioned=False)
        assert loss(captioned, **given) != loss(captioned)
        assert loss(uncaptioned, **given) == loss(uncaptioned)
        # A caption that is the empty one changes nothing.
        same = dataclasses.replace(captioned, llama=empty.llama.expand(2, -1), clip=empty.clip.expand(2, -1))
        assert loss(same, **given) == pytest.approx(loss(same), abs=1e-6)


class TestPool:
    def test_cells_near_an_object(self) -> None:
        cover = torch.zeros(1, 1, 9, 32, 32)
        cover[0, 0, 0, 0, 0] = 1.0  # the first frame is a latent frame of its own
        cover[0, 0, 8, 31, 31] = 0.1
        near = near_objects(cover, (3, 4, 4))
        assert near.shape == (1, 1, 3, 4, 4)
        assert near[0, 0].sum((1, 2)).tolist() == [4, 0, 4]
        assert near[0, 0, 0, :2, :2].all()
        assert near[0, 0, 2, 2:, 2:].all()

    def test_content_depends_on_the_step_alone(self, work: Path, text: Text) -> None:
        vae = load_vae(work / "vae" / "model", CPU)
        walked, jumped = (LatentPool(POOL, GEOMETRY, vae, text, seed=1) for _ in range(2))
        for step in range(8):
            walked.advance(step)
        jumped.advance(7)
        for step in range(5):
            one, other = walked.batch(step, 3), jumped.batch(step, 3)
            assert torch.equal(one.latents, other.latents)
            assert torch.equal(one.llama, other.llama)

    def test_captions_of_a_batch_have_one_length(self, work: Path, text: Text) -> None:
        pool = LatentPool(POOL, GEOMETRY, load_vae(work / "vae" / "model", CPU), text, seed=2)
        pool.advance(0)
        end = text.tokenizer.eos_token_id
        for step in range(10):
            assert (pool.batch(step, 4).llama[:, -1] == end).all()


class TestVae:
    def test_fast_operations_change_nothing(self) -> None:
        torch.manual_seed(0)
        plain = build_vae(VAE)
        fast = copy.deepcopy(plain)
        speed_up(fast)
        clip = torch.randn(2, 3, 9, 32, 48)
        results = []
        for vae in (plain, fast):
            latents = vae.encode(clip).latent_dist.mode()
            picture = vae.decode(latents).sample
            picture.square().mean().backward()
            results.append([latents, picture, *(p.grad for p in vae.parameters() if p.grad is not None)])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(other, one, atol=2e-5, rtol=1e-3)

    def test_normalisation_changes_latents_but_not_pictures(self) -> None:
        torch.manual_seed(0)
        vae = build_vae(VAE)
        clip, _ = draw(plan_clips(2, 0), 9, 32, 32, CPU)
        centre, spread = torch.randn(8), torch.rand(8) + 0.5
        with torch.no_grad():
            before = vae.encode(clip).latent_dist
            picture = vae.decode(before.mode()).sample
            fold_normalisation(vae, centre, spread)
            after = vae.encode(clip).latent_dist
            same = vae.decode(after.mode()).sample
        shape = (1, -1, 1, 1, 1)
        torch.testing.assert_close(after.mode(), (before.mode() - centre.view(shape)) / spread.view(shape))
        torch.testing.assert_close(after.std, before.std / spread.view(shape), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(same, picture, atol=1e-4, rtol=1e-4)

    def test_latents_have_unit_spread(self, work: Path) -> None:
        vae = load_vae(work / "vae" / "model", CPU)
        clip, _ = draw(plan_clips(32, 4), 9, 32, 32, CPU)
        assert 0.5 < encode(vae, clip).std() < 2.0


class TestExport:
    def test_folder_loads_and_generates(self, work: Path, tmp_path: Path) -> None:
        export(work, "full", tmp_path / "model")
        for dtype in (torch.float32, torch.bfloat16):
            pipe = HunyuanVideoPipeline.from_pretrained(tmp_path / "model", dtype=dtype)
            assert {m.dtype for m in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)} == {dtype}
        pipe = load_folder(tmp_path / "model", CPU)
        assert pipe.scheduler.config.shift == STAGE.shift
        assert pipe.tokenizer.padding_side == "right"
        call = {"num_frames": 9, "height": 32, "width": 32, "num_inference_steps": 1, "output_type": "np"}
        ours = load_trained(work, "full", CPU).pipe("a red circle", generator=torch.manual_seed(0), **call).frames
        loaded = pipe("a red circle", generator=torch.manual_seed(0), **call).frames
        assert loaded.shape == (1, 9, 32, 32, 3)
        assert abs(loaded - ours).max() < 0.02  # float16 weights
        assert "apache-2.0" in (tmp_path / "model" / "README.md").read_text()


def test_muon_on_stacks_is_muon_on_each() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(64, 64), (64, 64), (128, 64), (64, 96)]
    one, other = ([torch.nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in range(2))
    theirs = torch.optim.Muon(one, lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    ours = BatchedMuon(other, lr=0.1, weight_decay=0.01)
    for _ in range(3):
        for p, q in zip(one, other, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        theirs.step()
        ours.step()
    for p, q in zip(one, other, strict=True):
        assert (p - q).norm() < 0.05 * p.norm()  # both iterate in bfloat16
    assert theirs.state_dict()["state"].keys() == ours.state_dict()["state"].keys()


def test_muon_gets_the_matrices_of_the_blocks_alone() -> None:
    modules, _ = build_modules(MODEL, 0)
    names = block_matrices(modules)
    assert len(names) == MODEL.dual_layers * 12 + MODEL.single_layers * 5
    assert not [name for name in names if "norm" in name or "bias" in name or "refiner" in name]


def test_what_was_taught_before_learns_slowly(tmp_path: Path) -> None:
    """Its optimiser's state finds its way back to the parameters that it is of."""
    torch.manual_seed(0)
    modules = {name: torch.nn.Linear(4, 4) for name in ("old", "new")}
    config = LoopConfig(steps=3, batch=1, learning_rate=0.01, taught_rate=0.1, warmup=1, weight_decay=0.0)
    before = {name: module.weight.detach().clone() for name, module in modules.items()}
    loop = Loop(modules, copy.deepcopy(modules), config, tmp_path, taught=("old.weight", "old.bias"))
    x = torch.ones(1, 4)
    loop.run(lambda _: modules["old"](x).sum() + modules["new"](x).sum())
    moved = {name: float((module.weight - before[name]).abs().mean().detach()) for name, module in modules.items()}
    assert moved["old"] == pytest.approx(0.1 * moved["new"], rel=1e-3)
    again = Loop(modules, copy.deepcopy(modules), config, tmp_path, taught=("old.weight", "old.bias"))
    assert again.resume()
    one, other = (checkpoint.optimizer_tensors(*each.optimizers[0]) for each in (loop, again))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_of_chosen_length_can_be_had_again(work: Path, tmp_path: Path) -> None:
    for name in ("fit", "again"):
        (tmp_path / name / "vae").mkdir(parents=True)
        (tmp_path / name / "vae" / "model").symlink_to(work / "vae" / "model")
    fit = dataclasses.replace(LOOP, steps=1000, warmup=3, fit_minutes=0.0)  # no time left: one more step
    assert train_stage(MODEL, STAGE, fit, tmp_path / "fit", CPU)
    state = checkpoint.load_state(tmp_path / "fit" / "full")
    assert state is not None
    assert state["steps"] == state["step"] == 4
    again = dataclasses.replace(LOOP, steps=4, warmup=3)
    assert train_stage(MODEL, STAGE, again, tmp_path / "again", CPU)
    assert_same_checkpoint(tmp_path / "fit" / "full", tmp_path / "again" / "full")


def test_a_chosen_length_survives_an_interruption(work: Path, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model").symlink_to(work / "vae" / "model")
    fit = dataclasses.replace(LOOP, steps=1000, warmup=3, fit_minutes=0.0, max_minutes=0.0)
    for _ in range(3):
        assert not train_stage(MODEL, STAGE, fit, tmp_path, CPU)
    assert train_stage(MODEL, STAGE, dataclasses.replace(LOOP, steps=1000, warmup=3), tmp_path, CPU)
    state = checkpoint.load_state(tmp_path / "full")
    assert state is not None
    assert (state["step"], state["steps"], state["fitted"]) == (4, 4, True)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "full").iterdir()}
    assert train_stage(MODEL, STAGE, LOOP, tmp_path, CPU)  # done: nothing is trained, nothing written
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "full").iterdir()}


def test_sampling_is_independent_of_the_batch(work: Path) -> None:
    trained = load_trained(work, "full", CPU)
    prompts = ["a red circle", "a blue star moves up"]
    both = sample_captions(trained.pipe, prompts, GEOMETRY, steps=1, seed=3)
    alone = sample_captions(trained.pipe, prompts[1:], GEOMETRY, steps=1, seed=4)
    assert abs(both[1].astype(int) - alone[0].astype(int)).max() <= 1


def test_checkpoint_of_another_geometry_is_refused(work: Path) -> None:
    modules, _ = build_modules(dataclasses.replace(MODEL, single_layers=1), 0)
    tensors = checkpoint.load_group(work / "full", "ema")
    assert tensors is not None
    with pytest.raises(ValueError, match="another geometry"):
        checkpoint.load_modules(modules, tensors)


def test_assembled_pipeline_takes_the_modules_as_they_are(text: Text) -> None:
    modules, _ = build_modules(MODEL, 0)
    pipe = assemble_pipeline(modules, text, build_vae(VAE), 3.0)
    assert pipe.transformer is modules["transformer"]

"""HunyuanVideo 1.5: what only it does. What every family does is in tests/models/test_every_family.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AdaptiveProjectedGuidance, FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from adaspa_cli import apply
from adaspa_cli.config import resolve
from adaspa_cli.config.families import facts_of
from adaspa_cli.errors import ConfigError, RunError
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.models.random_text import text_tokens
from adaspa_cli.models.registry import family_of
from adaspa_cli.sampling.run import sample
from tests.pipelines import PROMPT, SPARSE, hunyuan_video15, latents, qwen_and_byt5, save

TOLERANCES = {"rtol": 1e-4, "atol": 1e-4}
PICTURE = Image.new("RGB", (96, 64), (200, 40, 90))
SIZE = {"height": 192, "width": 256, "frames": 9, "steps": 3, "device": "cpu", "decode": False}


def run(pipe: Any, **settings: Any) -> torch.Tensor:
    """Latents; the image pipeline gets a picture."""
    return latents(pipe, **({"image": PICTURE} if "image_encoder" in pipe.components else {}), **settings)


@pytest.fixture(params=[False, True], ids=["text", "image"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return hunyuan_video15(image=request.param)


@pytest.fixture
def newest() -> Any:
    return hunyuan_video15()


def with_glyphs(pipe: Any, glyphs: int) -> None:
    """Give the stand-in for the text encoders texts to be read in the video."""
    encode = pipe.encode_prompt

    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        text, mask, of_glyphs, glyph_mask = encode(*args, **kwargs)
        glyph_mask[:, :glyphs] = 1
        return text, mask, torch.randn(of_glyphs.shape, generator=torch.Generator().manual_seed(3)), glyph_mask

    pipe.encode_prompt = encode_prompt


def test_texts_in_the_video_are_attended_to(pipe: Any) -> None:
    without = run(pipe)
    with_glyphs(pipe, 5)
    plain = run(pipe)
    assert not torch.allclose(plain, without, **TOLERANCES)
    with apply(pipe, **(SPARSE | {"sparsity": 0.0})):
        torch.testing.assert_close(run(pipe), plain, **TOLERANCES)


@pytest.mark.parametrize("glyphs", [0, 5])
def test_only_real_text_is_attended_to(pipe: Any, glyphs: int) -> None:
    """The tokens of a picture, of texts in the video, and of the prompt."""
    with_glyphs(pipe, glyphs)
    with apply(pipe, "full", attention_backend="reference") as handle:
        run(pipe)
        (row,) = handle._attachment.rows
    of_picture = 20 if "image_encoder" in pipe.components else 0
    assert row.layout.text_tokens == of_picture + glyphs + text_tokens("", 40), "the last pass is without a prompt"


def test_bfloat16_masks_are_counted_exactly(newest: Any) -> None:
    """It has no 257: masks come in the model's dtype."""
    newest.to(torch.bfloat16)
    newest.tokenizer_max_length = 400
    with apply(newest, "full", attention_backend="reference") as handle:
        newest.guider = newest.guider.new(guidance_scale=1.0)
        run(newest, prompt="word " * 191 + "end")  # 4 tokens for 3 words, and 2
        (row,) = handle._attachment.rows
    assert row.layout.text_tokens == text_tokens("word " * 192, 400) == 258


@pytest.mark.parametrize("method", ["full", "adaspa"])
def test_no_mask_of_all_pairs_of_tokens_is_built(newest: Any, method: str) -> None:
    """Diffusers builds one in every block."""
    tokens = 3 * 4 * 6 + 40 + 12 + 20

    class Largest(TorchDispatchMode):
        """Remembers the size of the largest bool tensor."""

        def __init__(self) -> None:
            super().__init__()
            self.elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dtype == torch.bool:
                self.elements = max(self.elements, out.numel())
            return out

    with Largest() as plain:
        run(newest)
    assert plain.elements == tokens**2
    settings = {"attention_backend": "cpu"} | ({"block_size": 16, "search_steps": (0, 2)} if method == "adaspa" else {})
    with apply(newest, method, **settings), Largest() as ours:
        run(newest)
    assert ours.elements == 2 * 40**2, "that of the token refiner, of the prompt's tokens"


def test_a_guider_that_leaves_out_the_unconditional_pass_at_some_steps(newest: Any) -> None:
    newest.guider = newest.guider.new(start=0.5)
    newest.guider.set_state(step=2, num_inference_steps=4, timestep=torch.tensor(0))  # so that it encodes both prompts
    plain = run(newest)
    with apply(newest, **(SPARSE | {"sparsity": 0.0})) as handle:
        newest.guider.set_state(step=2, num_inference_steps=4, timestep=torch.tensor(0))
        torch.testing.assert_close(run(newest), plain, **TOLERANCES)
    calls = [sum(call.step == step for call in handle.engine.calls) for step in range(4)]
    assert calls == [3, 3, 6, 6]


def test_other_guiders_are_refused(newest: Any) -> None:
    own, newest.guider = newest.guider, AdaptiveProjectedGuidance()
    with pytest.raises(RunError, match="the guider AdaptiveProjectedGuidance"):
        apply(newest, **SPARSE)
    newest.guider = own
    with apply(newest, **SPARSE):
        newest.guider = AdaptiveProjectedGuidance()
        with pytest.raises(RunError, match="the guider AdaptiveProjectedGuidance"):
            run(newest)
    newest.guider = own
    assert torch.isfinite(run(newest)).all()


@pytest.mark.parametrize(("scale", "passes"), [(6.0, 2), (1.0, 1)])
def test_the_guidance_scale_of_a_run_is_the_guiders(pipe: Any, scale: float, passes: int) -> None:
    """And the size of a run is the video's, also where the pipeline would choose another."""
    own = pipe.guider
    resolved = resolve({"model": "hunyuan1.5-480p", "random_weights": True, "guidance_scale": scale, **SIZE})
    with apply(pipe, "full", attention_backend="reference") as handle:
        made = sample(pipe, resolved, PROMPT, 0)
    assert made.shape[-3:] == (3, 12, 16)
    assert len(handle.engine.calls) == 3 * 3 * passes
    assert pipe.guider is own
    assert "calculate_default_height_width" not in vars(pipe.video_processor)
    assert family_of(pipe).facts.guided(resolved.config.sampling) == (passes == 2)
    assert family_of(pipe).video_grid(pipe, resolved.config.sampling) == (3, 12, 16)


def test_a_saved_pipeline_with_its_guider_is_loaded(tmp_path: Path, newest: Any) -> None:
    """Also its texts that are to be read in the video, which stand in quotation marks."""
    pipe = type(newest)(**newest.components | qwen_and_byt5())
    settings = {"model": str(save(pipe, tmp_path / "saved")), "device": "cpu", "dtype": "float32"}
    loaded = load_pipeline(resolve(settings).config.model)
    prompt = 'a sign that reads "hello" moves left'
    assert torch.equal(run(loaded, prompt=prompt), run(pipe, prompt=prompt))
    with apply(pipe, "full", attention_backend="reference"):
        torch.testing.assert_close(run(pipe, prompt=prompt), run(loaded, prompt=prompt), **TOLERANCES)
    assert type(loaded.guider).__name__ == "ClassifierFreeGuidance"
    assert loaded.guider.guidance_scale == 6.0
    assert isinstance(loaded.scheduler, FlowMatchEulerDiscreteScheduler)


def test_a_negative_prompt_without_guidance_is_refused() -> None:
    facts = facts_of("HunyuanVideo15Pipeline", "it")
    sampling = resolve({"model": "hunyuan1.5-480p-distilled", "negative_prompt": "dull"}).config.sampling
    with pytest.raises(ConfigError, match="no effect on this model without guidance"):
        facts.call_arguments(sampling)


@pytest.mark.parametrize(("name", "tokens"), [("480p", 49_290), ("720p", 111_600)])
def test_tokens_at_full_size(name: str, tokens: int) -> None:
    from adaspa_cli.config.architecture import architecture_of

    config = resolve({"model": f"hunyuan1.5-{name}"}).config
    frames, height, width = architecture_of(config.model).video_grid(config.sampling)
    assert frames * height * width == tokens

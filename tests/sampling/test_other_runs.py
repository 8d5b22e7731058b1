"""Masks of one run serve no other: whoever else calls an attached transformer is refused, or scheduled by itself."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXVideoToVideoPipeline

import adaspa_cli
from adaspa_cli.errors import RunError
from tests.pipelines import FRAMES, HEIGHT, WIDTH, cogvideox, hunyuan_video, latents, masks_at_end

SPARSE: dict[str, Any] = {
    "method": "adaspa",
    "sparsity": 0.5,
    "block_size": 16,
    "search_steps": (1, 3),
    "search_steps_for": None,
    "attention_backend": "reference",
}


@pytest.fixture
def pipe() -> Any:
    return cogvideox("1.0")


def video_to_video(pipe: Any) -> Any:
    """Five of ten steps on noise: video-to-video announces ten."""
    pipe.set_progress_bar_config(disable=True)
    video = torch.rand(1, FRAMES, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    call = {"prompt": "a", "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    size = {"height": HEIGHT, "width": WIDTH, "num_inference_steps": 10, "strength": 0.5, "guidance_scale": 1.0}
    with torch.inference_mode():
        return pipe(video=video, **call, **size).frames


def test_masks_and_lse_go_at_the_end_of_a_run(pipe: Any) -> None:
    with adaspa_cli.apply(pipe, **SPARSE) as handle:
        masks = masks_at_end(handle)
        latents(pipe)
        assert masks
        assert handle.masks() == {}
        found = weakref.ref(next(iter(masks.values())).mask.indices)
        masks.clear()
        gc.collect()
        assert found() is None
        assert [call.step for call in handle.engine.calls][-1] == 3, "the records stay"


def test_another_pipeline_with_a_scheduler_of_its_own_is_refused(pipe: Any) -> None:
    other = CogVideoXPipeline(**(pipe.components | {"scheduler": CogVideoXDDIMScheduler()}))
    plain = latents(other)
    with adaspa_cli.apply(pipe, **SPARSE):
        latents(pipe)
        with pytest.raises(RunError, match="outside a run"):
            latents(other)
    assert torch.equal(latents(other), plain)


@pytest.mark.parametrize("make", [cogvideox, hunyuan_video])
def test_after_an_exception_another_pipeline_is_refused(make: Any) -> None:
    pipe = make()
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    other = type(pipe)(**(pipe.components | {"scheduler": scheduler}))

    def fail(_pipe: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            raise ZeroDivisionError
        return kwargs

    with adaspa_cli.apply(pipe, **SPARSE):
        alone = latents(pipe)
        with pytest.raises(ZeroDivisionError):
            latents(pipe, callback_on_step_end=fail)
        with pytest.raises(RunError, match=r"outside step 3 \(of 0 to 3\)"):
            latents(other)
        assert torch.equal(latents(pipe), alone)


@pytest.mark.parametrize("running", [False, True])
def test_a_direct_call_is_refused(running: bool) -> None:
    pipe = hunyuan_video()
    inputs: dict[str, Any] = {}
    pipe.transformer.register_forward_pre_hook(lambda _net, _args, kwargs: inputs.update(kwargs), with_kwargs=True)
    latents(pipe)

    def call(_pipe: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if running and step == 2:
            pipe.transformer(**(inputs | {"timestep": torch.tensor([7.0])}))
        return kwargs

    with adaspa_cli.apply(pipe, **SPARSE), pytest.raises(RunError, match="outside"):  # noqa: PT012
        latents(pipe, callback_on_step_end=call)
        pipe.transformer(**inputs)


@pytest.mark.parametrize("make", [cogvideox, hunyuan_video])
def test_a_copy_of_the_transformer_is_refused(make: Any) -> None:
    pipe = make()
    handle = adaspa_cli.apply(pipe, **SPARSE)
    alone = latents(pipe)
    other = type(pipe)(**(pipe.components | {"transformer": copy.deepcopy(pipe.transformer)}))
    with pytest.raises(RunError, match="is a copy"):
        latents(other)
    assert torch.equal(latents(pipe), alone)
    handle.remove()
    with pytest.raises(RunError, match="is a copy"):
        latents(other)


def test_an_interrupted_run_ends_with_the_call(pipe: Any) -> None:
    def stop(pipe: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return kwargs

    with adaspa_cli.apply(pipe, **SPARSE) as handle:
        latents(pipe, callback_on_step_end=stop)
        assert handle.clock.step == 2
        assert handle.masks() == {}
        with pytest.raises(RunError, match="outside a run"):
            _ = handle.clock.steps


def test_video_to_video_is_scheduled_by_the_steps_that_run(pipe: Any) -> None:
    """Searches at steps 1 and 3 of five, not of the ten that are announced, of which the first five never come."""
    latents(pipe, guidance_scale=1.0)
    other = CogVideoXVideoToVideoPipeline(**pipe.components)
    plain = video_to_video(other)
    with adaspa_cli.apply(pipe, **SPARSE) as handle:
        made = video_to_video(other)
        found = [(call.step, call.plan.phase) for call in handle.engine.calls if call.layer == 0]
        assert found == [(0, "dense"), (1, "search"), (2, "sparse"), (3, "cached search"), (4, "sparse")]
        assert handle.masks() == {}
    assert not torch.equal(made, plain)
    with adaspa_cli.apply(pipe, **(SPARSE | {"sparsity": 0.0})):
        torch.testing.assert_close(video_to_video(other), plain, rtol=1e-3, atol=1e-3)
    with adaspa_cli.apply(pipe, cache="first-block", **SPARSE), pytest.raises(RunError, match="leaves out the"):
        video_to_video(other)
    assert torch.equal(video_to_video(other), plain)


@pytest.mark.parametrize("make", [cogvideox, hunyuan_video])
def test_another_transformer_is_told_at_the_next_run(make: Any) -> None:
    pipe, own = make(), None
    with adaspa_cli.apply(pipe, **SPARSE) as handle:
        alone = latents(pipe)
        own = pipe.transformer
        for other in (make().transformer, torch.compile(own, backend="eager")):
            pipe.transformer = other
            with pytest.raises(RunError, match="the transformer was replaced after adaspa was applied") as told:
                latents(pipe)
            assert told.value.hint
        pipe.transformer = own
        assert torch.equal(latents(pipe), alone)
        assert handle.engine.calls

"""MagCache's calibration measures the ratios that MagCache then takes."""

from typing import Any

import pytest
import torch

from adaspa_cli import apply
from tests.pipelines import cogvideox, hunyuan_video, latents

STEPS = 6


@pytest.mark.parametrize("make", [hunyuan_video, cogvideox], ids=["hunyuan", "cogvideox"])
def test_the_measured_ratios_are_those_that_diffusers_measures(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import MagCacheConfig

    pipe = make()
    plain = latents(pipe, num_inference_steps=STEPS)
    with apply(pipe, "magcache-calibration", attention_backend="reference") as handle:
        made = latents(pipe, num_inference_steps=STEPS)
    assert handle.cache is not None
    report = handle.cache.report()
    torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-4)
    assert report["skipped"] == 0
    assert report["calibration"]
    assert report["ratios"][0] == 1
    assert capsys.readouterr().out == ""
    pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=STEPS))
    latents(pipe, num_inference_steps=STEPS)
    printed = capsys.readouterr().out
    theirs = [float(number) for number in printed[printed.rindex("[") + 1 : printed.rindex("]")].split(",")]
    assert report["ratios"] == pytest.approx(theirs, rel=1e-3)


def test_of_two_guidance_branches_the_conditional_one_is_measured() -> None:
    pipe = hunyuan_video()
    with apply(pipe, "magcache-calibration") as handle:
        latents(pipe)
        assert handle.cache is not None
        alone = handle.cache.report()["ratios"]
        latents(pipe, negative_prompt="a green square", true_cfg_scale=1.0 + 1e-7)
        assert handle.cache.report()["ratios"] == pytest.approx(alone, rel=1e-3)


def test_ratios_of_another_number_of_steps_are_taken_from_the_nearest() -> None:
    """Steps whose magnitude halves are not skipped, where it stays they are."""
    pipe = hunyuan_video()
    ratios = (1.0, 0.5, 0.5, 1.0)
    with apply(pipe, "full", cache="magcache", magcache_ratios=ratios, magcache_retention=0.0) as handle:
        latents(pipe, num_inference_steps=8)
    computed = sorted({call.step for call in handle.engine.calls})
    nearest = [ratios[round(step * 3 / 7)] for step in range(8)]
    assert {step for step, ratio in enumerate(nearest) if ratio != 1} <= set(computed)
    assert computed != list(range(8))
    assert torch.isfinite(latents(pipe)).all()

"""A seed fixes the video, also where the scheduler draws noise at its steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDPMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from torch import Tensor

from adaspa_cli import apply
from adaspa_cli.config import resolve
from adaspa_cli.models.seeded_noise import seeded_steps
from adaspa_cli.sampling.run import sample
from tests.pipelines import PROMPT, cogvideox, hunyuan_video, latents, small_run


def run(pipe: Any, seed: int, elsewhere: int) -> Tensor:
    """Latents of a seed, while something else has left the global generator in some state."""
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(elsewhere)
    return sample(pipe, resolve(small_run(Path("tiny"), Path("out"), model="tiny", decode=False)), PROMPT, seed)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=7.0, stochastic_sampling=True),
        FlowMatchLCMScheduler(shift=7.0),
        FlowMatchEulerDiscreteScheduler(shift=7.0),
    ],
    ids=["stochastic Euler", "LCM", "Euler"],
)
@pytest.mark.parametrize("method", ["full", "diffusers"])
def test_a_seed_makes_one_video(scheduler: Any, method: str) -> None:
    pipe = hunyuan_video()
    pipe.scheduler = scheduler
    with apply(pipe, method):
        first, again, other = run(pipe, 0, 1), run(pipe, 0, 2), run(pipe, 1, 1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert "step" not in vars(scheduler)


def test_a_pipeline_s_own_generator_is_left_to_it() -> None:
    pipe = cogvideox()
    pipe.scheduler = CogVideoXDPMScheduler()
    plain = latents(pipe)
    with seeded_steps(pipe.scheduler, torch.Generator().manual_seed(5)):
        assert torch.equal(latents(pipe), plain)


def test_a_scheduler_whose_steps_take_no_generator_is_left_alone() -> None:
    class Scheduler:
        def step(self, sample: int) -> int:
            return sample + 1

    scheduler = Scheduler()
    with seeded_steps(scheduler, torch.Generator()):
        assert not vars(scheduler)
        assert scheduler.step(1) == 2

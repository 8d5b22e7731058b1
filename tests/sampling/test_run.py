"""A run's frames, and what it says when it cannot go on."""

import numpy as np
import pytest
import torch

from adaspa_cli.config import resolve
from adaspa_cli.errors import OutOfMemoryError, RunError
from adaspa_cli.sampling.run import to_frames


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_single_number_that_is_not_finite_is_noticed(value: float) -> None:
    video = torch.rand(1, 2, 3, 4, 4)
    assert to_frames(video).shape == (2, 4, 4, 3)
    video[0, 1, 2, 3, 3] = value
    with pytest.raises(RunError, match="not finite"):
        to_frames(video)


def test_frames_are_rounded_and_in_order() -> None:
    video = torch.zeros(1, 2, 3, 2, 4)
    video[0, 1, 0] = 0.5
    video[0, 1, 1, 1, 2] = 1.0
    frames = to_frames(video)
    assert frames.dtype == np.uint8
    assert not frames[0].any()
    assert (frames[1, ..., 0] == 128).all()
    assert frames[1, 1, 2, 1] == 255


def test_the_offload_that_helps_next_is_named() -> None:
    from adaspa_cli.sampling.memory import memory_errors

    def hint(offload: str, linear: str = "model", *, together: bool = False) -> str:
        config = resolve({"offload": offload, "linear": linear}).config
        with pytest.raises(OutOfMemoryError) as caught, memory_errors(config, together=together):
            raise torch.OutOfMemoryError("x")
        return str(caught.value.hint)

    assert hint("none").startswith("--offload model, ")
    assert hint("model").startswith("--offload group, ")
    assert hint("model", "fp8").startswith("--offload group without --linear fp8, ")
    assert "--offload" not in hint("group")
    assert hint("none", together=True).startswith("more --gpus, one with --offload model, ")

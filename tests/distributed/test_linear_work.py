"""What works on tokens where they are, compiled or in FP8, gives several processes what it gives one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adaspa_cli.config.load import method_config
from adaspa_cli.distributed.teams import Teams
from adaspa_cli.models.compiled import compile_blocks
from adaspa_cli.models.fp8 import Fp8Linears
from adaspa_cli.models.registry import family_of
from adaspa_cli.sampling.handle import Handle
from tests.distributed.ranks import together
from tests.pipelines import hunyuan_video, latents

SETTINGS = {"sparsity": 0.5, "block_size": 16, "search_steps": (1,), "attention_backend": "cpu"}


def _compiled(pipe: Any) -> None:
    compile_blocks(family_of(pipe).blocks(pipe.transformer), torch.device("cpu"), backend="eager")


def _in_fp8(pipe: Any) -> None:
    """As a GPU does it, but for the kernel: each token has a scale of its own."""
    Fp8Linears(family_of(pipe), pipe, emulate=True)


@pytest.mark.parametrize("change", [_compiled, _in_fp8])
def test_it_is_that_of_one_process(change: Callable[[Any], None], tmp_path: Path) -> None:
    def run(teams: Teams) -> Tensor:
        pipe = hunyuan_video(num_attention_heads=3, num_layers=1, num_single_layers=1)
        change(pipe)
        with Handle(pipe, method_config("adaspa", SETTINGS), teams=teams):
            return latents(pipe, height=48, width=64, num_inference_steps=3)

    expected = run(Teams())
    together(2, tmp_path, lambda teams: torch.testing.assert_close(run(teams), expected, rtol=0, atol=1e-5))

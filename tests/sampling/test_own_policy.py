"""Methods from outside: the example of docs/own-method.md, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import adaspa_cli
from adaspa_cli.errors import ConfigError
from adaspa_cli.masks import MaskPolicy
from adaspa_cli.masks.methods.adaspa import AdaSpa
from adaspa_cli.masks.methods.full import Full
from tests.pipelines import cogvideox, hunyuan_video, latents

DOCS = Path(__file__).parents[2] / "docs" / "own-method.md"


def example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    return str(code)


@pytest.mark.parametrize("make", [hunyuan_video, cogvideox])
def test_the_example_runs(make: Any) -> None:
    pipe = make()
    plain = latents(pipe)
    code = example().replace(
        'pipe(prompt="a red circle moves left on a blue background").frames', "latents(pipe, num_inference_steps=4)"
    )
    names: dict[str, Any] = {"pipe": pipe, "latents": latents, "__name__": "example"}
    # Small videos have few blocks.
    code = code.replace("(64, 64)", "(16, 16)").replace("reach: int = 2", "reach: int = 0")
    exec(compile(code, str(DOCS), "exec", dont_inherit=True), names)
    handle = names["handle"]
    phases = dict.fromkeys((call.step, call.plan.phase) for call in handle.engine.calls)
    assert list(phases) == [(0, "dense"), (1, "dense"), (2, "loaded masks"), (3, "sparse")]
    assert all(float(call.density.mean()) < 1 for call in handle.engine.calls if call.density is not None)
    assert torch.isfinite(names["video"]).all()
    assert not torch.equal(names["video"], plain)
    assert torch.equal(latents(pipe), plain)


def test_a_policy_may_be_made_for_the_number_of_steps() -> None:
    pipe, asked = hunyuan_video(), []

    def make(steps: int) -> MaskPolicy:
        asked.append(steps)
        return AdaSpa(0.5, (1, 3), (16, 16))

    settings: dict[str, Any] = {"method": "adaspa", "block_size": 16, "sparsity": 0.5, "search_steps": (1, 3)}
    with adaspa_cli.apply(pipe, **settings):
        expected = latents(pipe)
    with adaspa_cli.apply(pipe, policy=make):
        assert torch.equal(latents(pipe), expected)
    assert asked == [4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 0.5}, "'sparsity' has no effect on a policy of your own"),
        ({"masks": "file.safetensors"}, "'masks' has no effect on a policy"),
        ({"merge": "tomesd"}, "'merge' has no effect on a policy"),
        ({"method": "minference"}, "method 'minference' and a policy exclude each other"),
        ({"method": "adaspa"}, "method 'adaspa' and a policy exclude each other"),
        ({"policy": 3}, "policy must be a MaskPolicy, or a function that makes one, not int"),
        ({"attention_backend": "nope"}, "nope"),
    ],
)
def test_what_a_policy_does_not_look_at_is_refused(settings: dict[str, Any], message: str) -> None:
    pipe = hunyuan_video()
    with pytest.raises(ConfigError, match=message):
        adaspa_cli.apply(pipe, **({"policy": Full()} | settings))
    assert "step" not in vars(pipe.scheduler)

"""The script of docs/diffusers.md, and what that page says may change while adaspa is applied."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import adaspa_cli
from adaspa_cli.errors import RunError
from tests.pipelines import hunyuan_video, latents

PAGE = Path(__file__).parents[2] / "docs" / "diffusers.md"


def test_the_script_runs_and_takes_adaspa_off_again(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = hunyuan_video()
    plain = latents(pipe)
    (code,) = re.findall(r"^handle = .*?(?=^```)", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    code, calls = re.subn(r"pipe\(prompt=.*\)\.frames\[0\]", "latents(pipe, num_inference_steps=4)", code)
    assert calls == 1
    names: dict[str, Any] = {"adaspa_cli": adaspa_cli, "pipe": pipe, "latents": latents}
    exec(compile(code, str(PAGE), "exec", dont_inherit=True), names)
    said = r"cpu: \d+% of the blocks computed\nestimated attention error \d+\.\d%\n"
    assert re.fullmatch(said, capsys.readouterr().out)
    assert torch.equal(latents(pipe), plain)


def test_a_lora_may_be_added_and_switched_while_adaspa_is_applied() -> None:
    peft = pytest.importorskip("peft", reason="pip install 'adaspa[lora]'")
    pipe = hunyuan_video()
    plain = latents(pipe)
    with adaspa_cli.apply(pipe, "full"):
        pipe.transformer.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
        changed = latents(pipe)
        pipe.transformer.disable_adapters()
        torch.testing.assert_close(latents(pipe), plain)
    pipe.transformer.enable_adapters()
    assert (changed - plain).abs().max() > 1e-3
    torch.testing.assert_close(latents(pipe), changed)


def test_a_scheduler_of_another_class_is_set_before() -> None:
    pipe = hunyuan_video()
    own = type("OwnScheduler", (type(pipe.scheduler),), {})
    pipe.scheduler = own.from_config(pipe.scheduler.config)
    with adaspa_cli.apply(pipe) as handle:
        latents(pipe)
        assert {call.step for call in handle.engine.calls} == set(range(len(pipe.scheduler.timesteps)))
        pipe.scheduler = own.from_config(pipe.scheduler.config)
        with pytest.raises(RunError, match="the scheduler was replaced after adaspa was applied"):
            latents(pipe)

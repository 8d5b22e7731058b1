"""Every job that loads a model says which prompts are longer than it reads, before it makes anything."""

from pathlib import Path
from typing import Any

import pytest

from adaspa_cli.config import resolve
from adaspa_cli.config.search_masks import SearchOptions
from adaspa_cli.errors import ConfigError
from adaspa_cli.jobs.search_masks import search_masks
from adaspa_cli.visual.choice import ProbeRequest
from adaspa_cli.visual.run import visualize
from tests.pipelines import PROMPT, Listener, make_reports, small_run

LONG = " ".join([PROMPT] * 40)


def notes(listener: Listener) -> list[str]:
    return [told[0] for name, *told in listener.heard if name == "note"]


def assert_named(listener: Listener) -> None:
    (line,) = notes(listener)
    assert " reads 256 tokens of a prompt and drops the rest: '" in line
    assert listener.names().index("note") < listener.names().index("video")


def run(folder: Path, out: Path, **flags: Any) -> Listener:
    listener = Listener()
    make_reports(resolve(small_run(folder, out, **{"seed": (0, 1), "prompt": [LONG]} | flags)), listener)
    return listener


def test_a_run_names_a_long_prompt_once(hunyuan_folder: Path, tmp_path: Path) -> None:
    assert_named(run(hunyuan_folder, tmp_path))
    assert notes(run(hunyuan_folder, tmp_path, prompt=[PROMPT])) == []


def test_strict_prompt_makes_no_video(hunyuan_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reads 256 tokens of a prompt"):
        run(hunyuan_folder, tmp_path, strict_prompt=True, prompt=[PROMPT, LONG])
    assert not list(tmp_path.iterdir())


def test_a_search_for_masks_names_it(hunyuan_folder: Path, tmp_path: Path) -> None:
    listener = Listener()
    settings = resolve(small_run(hunyuan_folder, tmp_path, height=64, width=96, frames=9))
    search_masks(settings, SearchOptions(tmp_path / "masks.safetensors"), [LONG], listener)
    assert_named(listener)


def test_pictures_of_attention_name_it(hunyuan_folder: Path, tmp_path: Path) -> None:
    listener = Listener()
    settings = resolve(small_run(hunyuan_folder, tmp_path, height=64, width=96, frames=9))
    visualize(settings, ProbeRequest((0,), (1,), (0,), 0, 8, None), listener, [LONG])
    assert_named(listener)

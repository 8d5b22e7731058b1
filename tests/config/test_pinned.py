"""The settings of presets, key by key: their hash is a run's fingerprint, by which --resume knows its own videos."""

import json
from pathlib import Path

import pytest

from adaspa_cli.config import resolve
from adaspa_cli.config.presets import preset_names

PINNED = json.loads((Path(__file__).parent / "pinned.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("preset", sorted(PINNED))
def test_the_settings_of_a_preset_are_those_of_earlier_versions(preset: str) -> None:
    method, model = preset.split(" on ")
    assert resolve({"method": method, "model": model}).flat() == PINNED[preset]


def test_every_method_is_pinned() -> None:
    pinned = {preset.split(" on ")[0] for preset in PINNED}
    missing = [name for name in preset_names("methods") if name not in pinned]
    entries = {f"{name} on hunyuan": resolve({"method": name, "model": "hunyuan"}).flat() for name in missing}
    assert not missing, f"add to pinned.json:\n{json.dumps(entries, sort_keys=True)[1:-1]}"
    assert pinned == set(preset_names("methods"))

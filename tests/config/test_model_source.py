"""What ``--model`` means."""

import pytest

from adaspa_cli.config import resolve
from adaspa_cli.config.load import load_preset
from adaspa_cli.config.presets import preset_names


@pytest.mark.parametrize("name", [name for name in preset_names("models") if name != "tiny"])
def test_a_preset_s_own_hub_id_has_the_preset_s_defaults(name: str) -> None:
    hub_id = load_preset("models", name)["weights"]
    by_name, by_id = resolve({"model": name}).config, resolve({"model": hub_id.lower()}).config
    assert by_id.sampling == by_name.sampling
    assert by_id.method == by_name.method
    assert by_id.model.flow_shift == by_name.model.flow_shift

"""What ``--model`` means."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import RemoteEntryNotFoundError

from adaspa_cli.config import load, resolve
from adaspa_cli.config.load import load_preset
from adaspa_cli.config.lora import LoraSource
from adaspa_cli.config.presets import preset_names
from adaspa_cli.errors import ModelError


@pytest.mark.parametrize("name", [name for name in preset_names("models") if name != "tiny"])
def test_a_preset_s_own_hub_id_has_the_preset_s_defaults(name: str) -> None:
    hub_id = load_preset("models", name)["weights"]
    by_name, by_id = resolve({"model": name}).config, resolve({"model": hub_id.lower()}).config
    assert by_id.sampling == by_name.sampling
    assert by_id.method == by_name.method
    assert by_id.model.flow_shift == by_name.model.flow_shift


def test_a_model_named_as_a_preset_reads_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """All presets together take as long as the rest of a start."""
    read: list[str] = []
    mapping = load.read_mapping

    def listened(path: Path) -> dict[str, Any]:
        read.append(path.stem)
        return mapping(path)

    monkeypatch.setattr(load, "read_mapping", listened)
    resolve({"model": "hunyuan"})
    assert set(read) == {"hunyuan", "adaspa"}


def test_a_file_that_the_hub_does_not_have_is_no_network_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a model's first repository, which is not in diffusers' format."""

    def absent(*_: Any, **__: Any) -> str:
        raise RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", absent)
    for module in ("model_source", "lora"):
        monkeypatch.setattr(f"adaspa_cli.config.{module}.hub_answers", lambda: True)
    with pytest.raises(ModelError, match=r"org/original has no model_index\.json, so it is not in diffusers' format"):
        resolve({"model": "org/original"})
    with pytest.raises(ModelError, match=r"org/loras has no file wrong\.safetensors"):
        LoraSource.parse("lora", "org/loras/wrong.safetensors").file()

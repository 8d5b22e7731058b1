"""``adaspa models`` as its users see it."""

import json
import subprocess
import sys

from typer.testing import CliRunner

from adaspa_cli.app import app
from adaspa_cli.config.presets import preset_names


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["models", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_table_has_every_preset() -> None:
    shown = call()
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert lines.keys() >= set(preset_names("models"))
    assert "HunyuanVideo hunyuanvideo-community/HunyuanVideo" in " ".join(lines["hunyuan"].split())
    assert "118,800" in lines["hunyuan"]
    assert "60 x 24" in lines["hunyuan"]
    assert [entry["name"] for entry in json.loads(call("--json"))] == preset_names("models")


def test_memory_is_shown_for_every_offload_mode() -> None:
    entry = json.loads(call("hunyuan", "--json"))
    sizes = [entry[f"estimated_memory_bytes{suffix}"] for suffix in ("", "_offload_model", "_offload_group")]
    assert sizes == sorted(sizes, reverse=True)
    shown = " ".join(call("hunyuan").split())
    for offload, size in zip(("model", "group"), sizes[1:], strict=True):
        assert f"with --offload {offload} {size / 1e9:.1f} GB" in shown


def test_it_is_said_where_a_licence_is_stated_and_which_is_not_verified() -> None:
    notes = {entry["name"]: entry["licence_note"] for entry in json.loads(call("--json"))}
    assert "LICENSE.txt of github.com/Tencent-Hunyuan/HunyuanVideo" in notes["hunyuan"]
    assert notes["hunyuan-i2v"].startswith("not verified")
    shown = call("hunyuan")
    assert "does not apply in the EU" in " ".join(shown.split())
    assert "gated: not verified" in " ".join(shown.split())


def test_one_model_in_detail() -> None:
    shown = " ".join(call("wan2.2-a14b").split())
    assert "tokens 75,600 (21 x 45 x 80)" in shown
    assert "attention 80 layers of 40 heads of 128" in shown
    assert "transformer_2 14.29 billion" in shown


def test_the_bundled_model_tells_its_words() -> None:
    shown = call("tiny")
    assert "knows colors" in shown
    assert "trained on frames" in shown
    assert json.loads(call("tiny", "--json"))["trained"]["frames"] == [33, 33]


def test_a_wrong_name_is_refused() -> None:
    result = CliRunner().invoke(app, ["models", "hunyuann"])
    assert result.exit_code == 2
    assert "unknown model 'hunyuann'; did you mean 'hunyuan'" in result.stderr


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; sys.argv = ['adaspa', 'models']; from adaspa_cli.app import main; main(); "
        "assert not {'torch', 'diffusers', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)

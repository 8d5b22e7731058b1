"""Configuration: what wins over what, with its origin; wrong keys, types and files are refused in one line."""

import itertools
import math
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pytest
import torch

from adaspa_cli.commands.settings import Given
from adaspa_cli.config import GenerateConfig, MethodConfig, Resolved, SamplingConfig, resolve
from adaspa_cli.config.caches import Cache
from adaspa_cli.config.fields import options_of
from adaspa_cli.config.flat import build, default_of, keys_of
from adaspa_cli.config.load import check_value, check_values, load_preset, method_config, parse_steps, read_yaml
from adaspa_cli.config.merging import Merging
from adaspa_cli.config.methods import AdaSpaConfig, Algorithm
from adaspa_cli.config.presets import preset_names
from adaspa_cli.errors import AdaspaError, ConfigError, ModelError


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_file(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def is_list(hint: Any) -> bool:
    return get_origin(hint) is tuple


def scalars(hint: Any) -> tuple[Any, ...]:
    return get_args(hint)[:1] if is_list(hint) else options_of(hint)


def value_and_origin(resolved: Resolved, key: str) -> tuple[Any, str]:
    return resolved.flat()[key], resolved.origins()[key]


def test_each_source_wins_over_the_one_before(write: Any) -> None:
    """default < method preset < model preset < file < flag"""
    assert value_and_origin(resolve(), "resume") == (False, "default")
    assert value_and_origin(resolve(), "sparsity") == (0.8, "method preset adaspa")
    fast = {"model": "fasthunyuan"}
    assert value_and_origin(resolve(fast), "sparsity") == (0.85, "model preset fasthunyuan")
    file = write("sparsity: 0.5\n")
    assert value_and_origin(resolve(fast, file), "sparsity") == (0.5, f"file {file}")
    assert value_and_origin(resolve(fast | {"sparsity": 0.25}, file), "sparsity") == (0.25, "flag")


def test_what_a_file_leaves_out_stays(write: Any) -> None:
    resolved = resolve({}, write("sparsity: 0.5\n"))
    assert value_and_origin(resolved, "steps") == (14, "model preset tiny")
    assert value_and_origin(resolved, "block_size") == (64, "method preset adaspa")


def test_a_file_may_name_model_and_method(write: Any) -> None:
    resolved = resolve({}, write("model: hunyuan\nmethod: full\n"))
    assert resolved.config.model.weights == "hunyuanvideo-community/HunyuanVideo"
    assert resolved.config.method.algorithm.name == "full"
    assert resolved.config.sampling.frames == 129


def test_the_configuration_holds_what_the_settings_say() -> None:
    resolved = resolve({"model": "cogvideox", "seed": [1, 2], "prompt": ["a"], "steps": 40})
    flat = resolved.flat()
    held = held_by(resolved.config)
    late = {
        key: list(known.default) if isinstance(known.default, tuple) else known.default
        for key, known in keys_of(GenerateConfig).items()
        if known.late
    }
    assert {key: (late | flat)[key] for key in held} == held
    assert not flat.keys() & late.keys()
    assert held["sparsity"] == 0.8
    assert held["cache"] == "none"


def held_by(config: Any) -> dict[str, Any]:
    """What a configuration holds, by key, in plain types."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            assert not found.keys() & held_by(value).keys()
            found |= held_by(value)
            value = getattr(value, "name", None)
        if value is not None or not is_dataclass(getattr(config, field.name)):
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def test_keys_are_unique_over_all_sections() -> None:
    names = [key for section in fields(GenerateConfig) for key in keys_of(type(default_of(section)))]
    assert sorted(names) == sorted(keys_of(GenerateConfig))


def test_methods_that_share_a_key_share_its_type_and_default() -> None:
    for choice in (Algorithm, Cache, Merging):
        for one, other in itertools.combinations(map(keys_of, get_args(choice)), 2):
            assert {key: one[key] for key in one.keys() & other} == {key: other[key] for key in one.keys() & other}


@pytest.mark.parametrize(
    ("key", "nearest"), [("sparsty", "sparsity"), ("search-steps", "search_steps"), ("frame", "frames")]
)
def test_an_unknown_key_names_the_nearest_and_the_file(write: Any, key: str, nearest: str) -> None:
    file = write(f"{key}: 1\n")
    with pytest.raises(ConfigError) as caught:
        resolve({}, file)
    assert caught.value.message == f"unknown key '{key}' in {file}; did you mean '{nearest}'?"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("steps: many", "steps in .* must be a whole number, got 'many'"),
        ("steps: 10.5", "steps in .* must be a whole number, got 10.5"),
        ("steps: true", "steps in .* must be a whole number, got True"),
        ("sparsity: high", "sparsity in .* must be a number, got 'high'"),
        ("sparsity: true", "sparsity in .* must be a number, got True"),
        ("head_adaptive: 1", "head_adaptive in .* must be true or false, got 1"),
        ("dtype: 16", "dtype in .* must be text, got 16"),
        ("search_steps: [1, x]", "search_steps in .* must be a list of whole numbers"),
        ("seed: [1.5]", "seed in .* must be a list of whole numbers"),
        ("prompt: [1]", "prompt in .* must be a list of texts"),
        ("out:", "out in .* must be text, got None"),
        ("flow_shift: x", "flow_shift in .* must be a number or nothing, got 'x'"),
    ],
)
def test_a_value_of_another_type_is_refused(write: Any, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve({}, write(line + "\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: [1, 2\n", "is not YAML"),
        ("a: b: c\n", "is not YAML"),
        ("- steps\n- frames\n", "must hold 'key: value' lines, not a list"),
        ("just text\n", "must hold 'key: value' lines, not a str"),
        ("out: !!python/object/apply:os.getcwd []\n", "is not YAML"),
        ("out: 2024-13-45\n", "is not YAML: month must be in 1..12"),
        ("steps: " + "9" * 5_000 + "\n", "is not YAML"),
        ("out: " + "[" * 5_000 + "\n", "is nested too deeply"),
        ("? [a]\n: b\n", "is not YAML"),
        ("steps: 5\nframes: 9\nsteps: 6\n", r"has the key 'steps' twice \(line 3\)"),
        ("steps: {a: 1, a: 2}\n", "has the key 'a' twice"),
        ("steps: {a: 1}\n", "must be a whole number, got {'a': 1}"),
        ("steps: " + "[" * 5 + "1" + "]" * 5 + "\n", "must be a whole number"),
        ("prompt: [[a, b]]\n", "must be a list of texts"),
        ("steps: .nan\n", "must be a whole number, got nan"),
        ("sparsity: .inf\n", "sparsity must lie in"),
        ("guidance_scale: .nan\n", "guidance_scale must be a number from 0 on, got nan"),
        ("seed: [0, " + "9" * 30 + "]\n", "seed must be one or more numbers from 0 to"),
    ],
)
def test_bad_yaml_is_refused_in_one_line(write: Any, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve({}, write(text))
    assert "\n" not in caught.value.message


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*missing\.yaml: No such file"):
        read_yaml(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        read_yaml(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00steps")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_yaml(binary)


def test_an_empty_file_says_nothing(write: Any) -> None:
    assert read_yaml(write("")) == {}
    assert read_yaml(write("# only a comment\n")) == {}


def test_single_values_stand_for_lists_of_one(write: Any) -> None:
    config = resolve({}, write("seed: 3\nsearch_steps: 1\nprompt: a circle\nsparsity: 0\n")).config
    assert config.sampling.seed == (3,)
    assert config.method.searching.search_steps == (1,)
    assert config.prompts.prompt == ("a circle",)
    assert isinstance(config.method.searching.sparsity, float)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"model": "fasthunyuan", "method": "adaspa-no-lse-cache"},
        {"model": "cogvideox-2b", "method": "full", "seed": [1, 2, 3]},
        {"search_steps": (1, 4), "sparsity": 0.5, "steps": 9},
        {
            "prompt": [
                "a: b # c",
                "[red] 'quoted' \"twice\"",
                "ein grüner Kreis 🟢",
                "two\nlines",
                "ends with ...",
                "- x",
            ]
        },
        {"prompt": ["word " * 400], "negative_prompt": "wait...", "true_cfg_scale": 2.0, "out": "~/my videos"},
        {"prompt": ["yes"], "negative_prompt": "null"},
        {"prompt": ["1e3"], "negative_prompt": "-.5E-2", "true_cfg_scale": 2.0, "flow_shift": 1e-5},
    ],
)
def test_what_print_config_shows_can_be_given_back(write: Any, flags: dict[str, Any]) -> None:
    first = resolve(flags)
    file = write(first.as_yaml())
    second = resolve({}, file)
    assert second.config == first.config
    assert set(second.origins().values()) == {f"file {file}"}


@pytest.mark.parametrize("text", ["1e-2", "+1E-2", "1.e-2", ".1e-1", "10e-3", "1.0e-2", "0.01"])
def test_numbers_are_written_as_in_flags(write: Any, text: str) -> None:
    assert read_yaml(write(f"max_error: {text}\n")) == {"max_error": 0.01}
    assert Given({}, (f"max_error={text}",)).settings() == {"max_error": 0.01}


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("sparsity", np.float32(0.5), 0.5),
        ("sparsity", torch.tensor(0.5), 0.5),
        ("sparsity", np.linspace(0, 1, 3)[1], 0.5),
        ("block_size", np.int64(32), 32),
        ("search_steps", range(0, 4, 2), (0, 2)),
        ("search_steps", np.arange(0, 4, 2), (0, 2)),
        ("search_steps", (np.int64(0), 2), (0, 2)),
        ("masks", Path("masks.safetensors"), "masks.safetensors"),
    ],
)
def test_a_program_gives_what_it_has(key: str, given: object, value: object) -> None:
    """In sweeps over NumPy's numbers, and paths; what comes of it can be written to a report."""
    found = check_value(key, given, "the settings")
    assert found == value
    assert type(found) is type(value)
    assert not isinstance(found, tuple) or {type(item) for item in found} == {int}


def test_what_is_no_number_stays_none() -> None:
    for key, given in (("sparsity", np.array([0.5, 0.6])), ("block_size", np.float32(32)), ("steps", np.True_)):
        with pytest.raises(ConfigError, match=f"{key} in the settings must be"):
            check_value(key, given, "the settings")
    with pytest.raises(ConfigError, match="method in the settings must be text, got 5"):
        method_config(5, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["model", "weights", "out", "masks", "method"])
def test_an_empty_text_is_no_value(write: Any, key: str) -> None:
    """As a path it would be the current folder; a shell writes it for a variable that is not set."""
    for given in ({"flags": {key: ""}}, {"file": write(f"{key}: ''\n")}):
        with pytest.raises(ConfigError, match=f"^{key} in .* is empty$"):
            resolve(**given)


def test_what_print_config_shows_is_one_setting_a_line_with_its_origin() -> None:
    lines = resolve({"steps": 9}).as_yaml().splitlines()
    assert len(lines) == len(keys_of(GenerateConfig))
    assert any(line.startswith("steps: 9 ") and line.endswith("# flag") for line in lines)


@pytest.mark.parametrize("name", preset_names("models"))
def test_every_model_preset_loads(name: str) -> None:
    resolved = resolve({"model": name})
    assert resolved.config.model.model == name
    assert set(load_preset("models", name)) <= set(keys_of(GenerateConfig))


@pytest.mark.parametrize("name", preset_names("methods"))
def test_every_method_preset_loads(name: str) -> None:
    resolved = resolve({"method": name})
    assert resolved.config.method.method == name
    assert type(method_config(name, {}).algorithm) is type(resolved.config.method.algorithm)


def test_the_presets_that_are_promised_are_there() -> None:
    assert {"tiny", "hunyuan", "fasthunyuan", "cogvideox"} <= set(preset_names("models"))
    assert {"adaspa", "full", "adaspa-no-head-adaptive", "adaspa-no-lse-cache"} <= set(preset_names("methods"))
    assert not resolve({"method": "adaspa-no-head-adaptive"}).config.method.searching.adapts_heads
    assert not resolve({"method": "adaspa-no-lse-cache"}).config.method.searching.lse_cache


def test_fasthunyuan_is_set_up_as_it_was_made() -> None:
    config = resolve({"model": "fasthunyuan"}).config
    assert config.model.flow_shift == 17.0
    assert config.sampling.steps == 6
    assert config.method.searching.schedule(6) == (0,)
    assert config.method.searching.sparsity == 0.85


def test_search_steps_given_by_hand_are_exact(write: Any) -> None:
    for resolved in (resolve({"search_steps": (3,)}), resolve({}, write("search_steps: [3]\n"))):
        assert resolved.config.method.searching.search_steps_for is None
        assert resolved.config.method.searching.schedule(14) == (3,)
    with pytest.raises(ConfigError, match="search step 30 is beyond the last step, which is 13"):
        resolve({"search_steps": (10, 30)})


def test_search_steps_of_a_preset_scale() -> None:
    resolved = resolve({"model": "hunyuan", "steps": 20})
    assert resolved.config.method.searching.schedule(20) == (4, 12)


def test_search_steps_do_not_matter_to_full_attention() -> None:
    assert resolve({"method": "full", "search_steps": (10, 30)}).config.method.algorithm.name == "full"


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("model", "hunyuann", "unknown model 'hunyuann'; did you mean 'hunyuan'"),
        ("method", "adspa", "unknown method 'adspa'; did you mean 'adaspa'"),
        ("method", "../models/tiny", "unknown method"),
    ],
)
def test_an_unknown_preset_names_the_nearest_and_lists_all(kind: str, given: str, message: str) -> None:
    with pytest.raises(AdaspaError, match=message) as caught:
        resolve({kind: given})
    for name in preset_names(f"{kind}s"):
        assert name in str(caught.value.hint)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must lie in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, "sparsity must lie in"),
        ({"sparsity": float("nan")}, "sparsity must lie in"),
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"frames": 0}, "frames must be at least 1"),
        ({"height": -16}, "height must be at least 1"),
        ({"fps": 0}, "fps must be at least 1"),
        ({"search_steps": ()}, "search_steps must be one or more"),
        ({"search_steps": (-1,)}, "search_steps must be one or more steps, 0 or higher"),
        ({"search_steps": (3, 2)}, "search_steps must be ascending"),
        ({"search_steps": (2, 2)}, "search_steps must be ascending"),
        ({"seed": []}, "seed must be one or more"),
        ({"seed": [-1]}, "seed must be one or more numbers from 0 to"),
        ({"seed": [2**64]}, "seed"),  # torch takes 64 bits
        ({"dtype": "bfloat61"}, "dtype 'bfloat61' is unknown; did you mean 'bfloat16'"),
        ({"offload": "modle"}, "offload 'modle' is unknown; did you mean 'model'"),
        ({"attention_backend": "tritn"}, "attention_backend 'tritn' is unknown; did you mean 'triton'"),
        ({"device": "gpu"}, "device 'gpu' is unknown"),
        ({"device": "3"}, "device '3' is unknown"),
        ({"device": "cuda:"}, "device 'cuda:' is unknown"),
        ({"true_cfg_scale": 2.0}, "needs a negative prompt"),
        ({"method": "full", "share_cfg_masks": True}, "'full' attends densely and has no masks"),
        ({"method": "pab", "share_cfg_masks": True}, r"'pab' \(algorithm full\) attends densely and has no masks"),
        ({"flow_shift": 0.0}, "flow_shift"),  # the shifted schedule would be all zeros
        ({"guidance_scale": float("nan")}, "guidance_scale"),
    ],
)
def test_impossible_values_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(flags)


def build_with(given: dict[str, Any]) -> GenerateConfig:
    """As :func:`resolve` does, without presets, which take long to read."""
    defaults = {key: known.default for key, known in keys_of(GenerateConfig).items()}
    return build(GenerateConfig, defaults | check_values(given, "a file"))


@pytest.mark.parametrize(
    "key", [key for key, known in keys_of(GenerateConfig).items() if {int, float} & {*scalars(known.hint)}]
)
def test_every_number_has_bounds(key: str) -> None:
    """Also where the value would be of no use; before torch is there, see below."""
    hint = keys_of(GenerateConfig)[key].hint
    scalar = next(iter({int, float} & {*scalars(hint)}))
    wrong: list[Any] = [10**20, -(10**20), 10**400, math.inf, -math.inf, math.nan] + [2.5] * (scalar is int)
    for value in wrong:
        with pytest.raises(ConfigError, match=key) as caught:
            build_with({key: [value] * 3 if is_list(hint) else value, "random_weights": True})
        assert "\n" not in caught.value.message
        assert len(caught.value.message) < 250


def test_a_program_is_told_too() -> None:
    with pytest.raises(ConfigError, match=r"steps must be a whole number, got 2\.5"):
        SamplingConfig(steps=2.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sparsity must lie in"):
        AdaSpaConfig(sparsity=math.nan)
    with pytest.raises(ConfigError, match="block_size must be at most 1024, got 100000"):
        method_config("adaspa", {"block_size": 100_000})


def test_an_absurd_value_is_refused_before_a_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(_: str) -> Any:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("adaspa_cli.config.model_source.fetch_model_index", ask)
    with pytest.raises(ConfigError, match="steps must be at most 10000"):
        resolve({"model": "some/model", "steps": 20_000})


def test_absurd_values_are_refused_before_anything_heavy_is_imported() -> None:
    program = (
        "import sys\n"
        "from adaspa_cli.config import resolve\n"
        "from adaspa_cli.errors import ConfigError\n"
        "for flags in ({'steps': 10**20}, {'block_size': 100_000}, {'frames': 10**6}, {'sparsity': float('nan')}):\n"
        "    try:\n        resolve(flags)\n"
        "    except ConfigError:\n        continue\n"
        "    sys.exit('taken: ' + str(flags))\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_flag_of_another_type_is_refused_with_its_name() -> None:
    with pytest.raises(ConfigError, match="steps in flag --steps must be a whole number"):
        resolve({"steps": "x"})


@pytest.mark.parametrize(("text", "steps"), [("10,30", (10, 30)), ("0", (0,)), (" 2, 7 ", (2, 7))])
def test_steps_are_read_as_flags_hold_them(text: str, steps: tuple[int, ...]) -> None:
    assert parse_steps(text) == steps


@pytest.mark.parametrize("text", ["", "10,", "10;30", "ten", "1.5", "٣", "1_0"])
def test_steps_that_are_no_numbers_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="comma-separated whole numbers"):
        parse_steps(text)


def test_a_method_takes_settings_from_python() -> None:
    config = method_config("adaspa", {"sparsity": 0, "search_steps": [1, 3], "attention_backend": "reference"})
    algorithm = AdaSpaConfig(sparsity=0.0, search_steps=(1, 3), search_steps_for=None)
    assert config == MethodConfig(algorithm=algorithm, attention_backend="reference")
    assert method_config("adaspa", {}).searching.search_steps_for == 50
    with pytest.raises(ConfigError, match="unknown setting 'sparsty'; did you mean 'sparsity'"):
        method_config("adaspa", {"sparsty": 0.5})
    with pytest.raises(ConfigError, match="'steps' is a setting of adaspa generate, not of a method"):
        method_config("adaspa", {"steps": 5})


def test_a_local_checkpoint_gets_the_defaults_of_its_family(hunyuan_folder: Path, cogvideox_folder: Path) -> None:
    hunyuan, cogvideox = resolve({"model": str(hunyuan_folder)}), resolve({"model": str(cogvideox_folder)})
    assert hunyuan.config.model.weights == str(hunyuan_folder)
    assert value_and_origin(hunyuan, "frames") == (129, "model preset hunyuan")
    assert value_and_origin(cogvideox, "frames") == (161, "model preset cogvideox")


def test_weights_of_a_named_model_may_lie_elsewhere(hunyuan_folder: Path) -> None:
    resolved = resolve({"model": "fasthunyuan", "weights": str(hunyuan_folder)})
    assert value_and_origin(resolved, "weights") == (str(hunyuan_folder), "flag")
    assert resolved.config.model.flow_shift == 17.0


def test_a_file_is_no_model_folder_and_the_message_says_so(write: Any) -> None:
    file = write("x")
    with pytest.raises(ModelError, match="not a folder") as caught:
        resolve({"model": str(file)})
    assert "does not exist" not in caught.value.message


def test_a_seed_that_a_file_gives_twice_is_there_once(tmp_path: Path) -> None:
    """Whatever is made of each of them: videos, sums of a mask search, pictures."""
    file = tmp_path / "run.yaml"
    file.write_text("seed: [3, 1, 3]\n")
    assert resolve({}, file).config.sampling.seed == (3, 1)


@pytest.mark.parametrize("value", [0, 100_000])
def test_a_number_out_of_bounds_is_told_its_bounds(value: int) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve({"height": value})
    assert refused.value.hint == "1 to 16,384, or leave it out for the preset's own value"

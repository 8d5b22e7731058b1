"""Settings of adaspa-plus, and sparsity by step: what is read from where, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from adaspa_cli.attention.compensated import Compensation
from adaspa_cli.commands.settings import Given
from adaspa_cli.config import resolve
from adaspa_cli.config.load import load_preset, method_config
from adaspa_cli.config.methods import AdaSpaConfig
from adaspa_cli.config.search_masks import SearchOptions
from adaspa_cli.errors import ConfigError
from adaspa_cli.masks.methods.adaspa import AdaSpa
from adaspa_cli.masks.methods.registry import make_policy

RAMP = "0:0.4,7%:0.5,14%:0.6,21%:0.7,28%:0.8,35%:0.9,50%:0.95"
BY_STEP = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9, *[0.95] * 7)


def method(**settings: Any) -> Any:
    return resolve({"model": "tiny", **settings}).config.method


def test_the_preset_sets_every_piece() -> None:
    plus = method(method="adaspa-plus")
    assert plus.token_order == "hilbert"
    policy = make_policy(plus.algorithm, 14)
    assert policy == AdaSpa(
        sparsity=BY_STEP,
        search_steps=(0, 1, 2, 3, 4, 5, 7, 8),
        budget="layer",
        fresh_lse=True,
        selection="output-error",
        search_rows=8,
        compensation=Compensation(pooled=True, probes=128, ridge=30.0),
    )


@pytest.mark.parametrize("model", ["hunyuan", "fasthunyuan", "cogvideox"])
def test_the_ramp_is_of_the_run_whatever_the_model(model: str) -> None:
    config = resolve({"method": "adaspa-plus", "model": model}).config
    assert config.method.algorithm.sparsity_ramp == RAMP
    steps = config.sampling.steps
    schedule = config.method.algorithm.schedule(steps)
    assert schedule[0] == 0
    assert config.method.algorithm.sparsity_by_step(steps)[-1] == 0.95
    assert schedule[-1] < steps


def test_each_piece_may_be_added_to_adaspa() -> None:
    for settings, changed in (
        ({"remainder": "pooled"}, {"compensation": Compensation(pooled=True)}),
        ({"repair": "probes", "probes": 32}, {"compensation": Compensation(probes=32)}),
        ({"selection": "output-error"}, {"selection": "output-error"}),
        ({"budget": "layer"}, {"budget": "layer"}),
        ({"head_adaptive": False}, {"budget": "row"}),
        ({"search_rows": 4}, {"search_rows": 4}),
    ):
        assert make_policy(method(**settings).algorithm, 14) == AdaSpa(0.8, (2, 8), **changed)  # type: ignore[arg-type]


def test_settings_of_adaspa_are_listed_where_they_are_set_alone() -> None:
    listed = resolve({"model": "tiny"}).flat()
    for key in ("token_order", "selection", "budget", "remainder", "repair", "lse", "sparsity_ramp"):
        assert key not in listed
    listed = resolve({"model": "tiny", "method": "adaspa-plus"}).flat()
    assert (listed["sparsity"], listed["sparsity_ramp"], listed["repair"]) == (0.95, RAMP, "probes")


@pytest.mark.parametrize("text", ["0:0.5,3:0.9", "0.9"])
def test_a_flag_or_a_file_replaces_the_ramp_of_a_preset(text: str, tmp_path: Path) -> None:
    ramp = "0:0.5,3:0.9" if ":" in text else None
    (tmp_path / "run.yaml").write_text(f"sparsity: {'{0: 0.5, 3: 0.9}' if ramp else 0.9}\n")
    for resolved in (
        resolve({"method": "adaspa-plus", "sparsity": text}),
        resolve({"method": "adaspa-plus"}, tmp_path / "run.yaml"),
    ):
        algorithm = resolved.config.method.algorithm
        assert (algorithm.sparsity, algorithm.sparsity_ramp) == (0.9, ramp)  # type: ignore[union-attr]
    applied = method_config("adaspa-plus", {"sparsity": 0.9 if ramp is None else {0: 0.5, 3: 0.9}}).algorithm
    assert (applied.sparsity, applied.sparsity_ramp) == (0.9, ramp)  # type: ignore[union-attr]


def test_what_is_printed_reads_back(tmp_path: Path) -> None:
    resolved = resolve({"method": "adaspa-plus", "sparsity": "0:0.2,50%:0.9"})
    (tmp_path / "printed.yaml").write_text(resolved.as_yaml())
    assert resolve({}, tmp_path / "printed.yaml").config.method == resolved.config.method


@pytest.mark.parametrize("sparsity", [0.8, "0.8", {0: 0.3, 5: 0.9}])
def test_a_sparsity_and_another_ramp_in_one_source_are_refused(sparsity: Any, tmp_path: Path) -> None:
    both = {"sparsity": sparsity, "sparsity_ramp": "0:0.5,5:0.9"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(both))
    texts = tuple(f"{key}={json.dumps(value)}" for key, value in {**both, "sparsity": 0.8}.items())
    for read in (
        lambda: resolve(both),
        lambda: resolve({}, tmp_path / "run.yaml"),
        lambda: method_config("adaspa", both),
        Given({}, texts).settings,
    ):
        with pytest.raises(ConfigError, match=r"sparsity.* is .*, and sparsity_ramp beside it is 0:0.5,5:0.9"):
            read()


def test_of_several_sources_the_last_one_decides_about_the_ramp(tmp_path: Path) -> None:
    (tmp_path / "ramp.yaml").write_text("sparsity_ramp: 0:0.5,5:0.9\n")
    (tmp_path / "one.yaml").write_text("sparsity: 0.8\n")
    ramp = {"sparsity_ramp": "0:0.5,5:0.9"}
    for read, expected in (
        (resolve({"sparsity": 0.8}, tmp_path / "ramp.yaml"), (0.8, None)),
        (resolve(ramp, tmp_path / "one.yaml"), (0.9, "0:0.5,5:0.9")),
        (Given({"sparsity": "0.8"}, ("sparsity={0: 0.5, 5: 0.9}",)).resolve(), (0.8, None)),
    ):
        algorithm = read.config.method.searching
        assert (algorithm.sparsity, algorithm.sparsity_ramp) == expected


def test_a_ramp_alone_reads_back_as_well(tmp_path: Path) -> None:
    resolved = resolve({"method": "adaspa-plus", "sparsity_ramp": "0:0.2,50%:0.9"})
    (tmp_path / "printed.yaml").write_text(resolved.as_yaml())
    assert resolve({}, tmp_path / "printed.yaml").config.method == resolved.config.method


def test_one_sparsity_has_the_searches_of_its_model() -> None:
    assert make_policy(method(method="adaspa-plus", sparsity=0.9).algorithm, 14) == AdaSpa(
        sparsity=0.9,
        search_steps=(2, 8),
        budget="layer",
        fresh_lse=True,
        selection="output-error",
        search_rows=8,
        compensation=Compensation(pooled=True, probes=128, ridge=30.0),
    )


def test_a_ramp_from_nothing_begins_dense() -> None:
    config = AdaSpaConfig(sparsity=0.9, sparsity_ramp="0:0,3:0.5,5:0.9", search_steps=(2, 8), search_steps_for=14)
    assert config.schedule(14) == (3, 5, 8)
    with pytest.raises(ConfigError, match="leaves out nothing"):
        config.schedule(3)


def test_other_search_steps_begin_where_the_ramp_ends() -> None:
    config = resolve({"method": "adaspa-plus", "model": "hunyuan"}).config.method.algorithm
    assert config.search_steps == (10, 30)
    assert config.schedule(50) == (0, 4, 7, 11, 14, 18, 25, 30)  # γ changes up to step 25
    assert config.schedule(50, (20,)) == (0, 4, 7, 11, 14, 18, 20, 25, 38)  # two transformers
    exact = AdaSpaConfig(sparsity=0.9, sparsity_ramp="0:0.5,8:0.9", search_steps=(4, 30), search_steps_for=None)
    assert exact.schedule(50) == (0, 4, 8, 30)


@pytest.mark.parametrize("name", ["minference", "sparse-videogen", "frame-region", "sol-attn"])
def test_every_method_takes_a_ramp(name: str) -> None:
    policy = make_policy(method(method=name, sparsity={0: 0.5, 7: 0.9}).algorithm, 14)
    assert policy.sparsity == (0.5,) * 7 + (0.9,) * 7  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lse": "fresh"}, "lse 'fresh' needs remainder 'pooled'"),
        ({"lse": "fresh", "remainder": "pooled", "lse_cache": False}, "lse 'fresh' needs lse_cache"),
        ({"search_rows": 3}, "search_rows must be one of 1, 2, 4, 8, 16"),
        ({"search_rows": 16, "block_size": 24}, "search_rows must divide block_size"),
        ({"budget": "head"}, "budget 'head' is unknown"),
        ({"remainder": "keep"}, "remainder 'keep' is unknown"),
        ({"probes": 1}, "probes must be at least 2"),
        ({"repair_ridge": 0.0}, "repair_ridge must be above 0"),
        ({"max_error": 0.1}, "max_error needs repair 'probes'"),
        ({"max_error": 0.0, "repair": "probes"}, r"max_error must lie in \(0, 1\]"),
        ({"sparsity": "0.5:0.1"}, "not at '0.5'"),
        ({"sparsity": {0: 2}}, r"must lie in \[0, 1\)"),
        ({"sparsity": "most"}, "sparsity must be a number, got 'most'"),
        ({"token_order": "spiral"}, "token_order 'spiral' is unknown"),
        ({"token_order": "hilbert", "method": "minference"}, "method 'minference' needs the tokens frame by frame"),
        ({"token_order": "hilbert", "method": "frame-region"}, "method 'frame-region' needs the tokens frame by frame"),
        ({"token_order": "hilbert", "method": "sparse-videogen"}, "method 'sparse-videogen' needs the tokens"),
        ({"token_order": "hilbert", "method": "diffusers"}, "method 'diffusers' needs the tokens"),
        ({"token_order": "hilbert", "method": "tomesd"}, "merge 'tomesd' needs the tokens frame by frame"),
        ({"token_order": "hilbert", "method": "adacache"}, "cache 'adacache' needs the tokens frame by frame"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        method(**settings)


def test_full_attention_and_adacache_without_motion_take_any_order() -> None:
    assert method(method="full", token_order="hilbert").order == "hilbert"
    assert method(method="adacache", token_order="hilbert", adacache_motion=False).order == "hilbert"


def test_a_mask_file_holds_masks_of_one_sparsity(tmp_path: Path) -> None:
    options = SearchOptions(tmp_path / "masks.safetensors")
    with pytest.raises(ConfigError, match="masks of one sparsity, not of a ramp") as caught:
        options.check(method(method="adaspa-plus", selection="mass"))
    assert caught.value.hint == "add --sparsity 0.95, at which the ramp ends"
    options.check(method(method="adaspa-plus", sparsity=0.9))
    ranking = SearchOptions(tmp_path / "masks.safetensors", keep_ranking=0.5)
    with pytest.raises(ConfigError, match="masks of 'adaspa-plus' can't be derived from a ranking"):
        ranking.check(method(method="adaspa-plus", sparsity=0.9, selection="mass"))


def test_the_preset_is_read_by_the_same_rules() -> None:
    assert load_preset("methods", "adaspa-plus")["sparsity"] == 0.95


@pytest.mark.parametrize(
    ("lacking", "hint"), [({"remainder": "drop"}, "--remainder pooled"), ({"lse_cache": False}, "--lse-cache")]
)
def test_what_a_fresh_lse_lacks_is_named_by_its_flag(lacking: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        method(method="adaspa-plus", sparsity=0.9, **lacking)
    assert caught.value.hint == f"add {hint}, or --set lse=cached"

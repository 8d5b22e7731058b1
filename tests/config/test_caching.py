"""Settings of caches: what wins over what, and combinations and values that make no sense are one clear error."""

from pathlib import Path
from typing import Any

import pytest

from adaspa_cli.config import resolve
from adaspa_cli.config.caches import MagCacheConfig
from adaspa_cli.config.load import method_config
from adaspa_cli.config.presets import preset_names
from adaspa_cli.errors import ConfigError


def test_the_methods_are_presets() -> None:
    assert {"pab", "adacache", "tomesd", "magcache-calibration"} <= set(preset_names("methods"))
    for method, cache, merge in (
        ("pab", "pab", "none"),
        ("adacache", "adacache", "none"),
        ("tomesd", "none", "tomesd"),
    ):
        config = resolve({"method": method}).config.method
        assert (config.algorithm.name, config.cache.name, config.merge.name) == ("full", cache, merge)
    assert resolve().config.method.cache.name == "none"


@pytest.mark.parametrize("model", preset_names("models"))
@pytest.mark.parametrize("method", ["pab", "adacache", "tomesd"])
def test_every_model_takes_them(model: str, method: str) -> None:
    assert resolve({"model": model, "method": method}).config.method.method == method


def test_a_cache_may_stand_in_a_file_and_a_flag_wins(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("cache: first-block\nfirst_block_threshold: 0.1\nmagcache_ratios: [1, 0.5]\n")
    resolved = resolve({}, file)
    assert resolved.config.method.cache.name == "first-block"
    assert resolved.flat()["magcache_ratios"] == [1.0, 0.5]
    assert resolved.origins()["first_block_threshold"] == f"file {file}"
    flagged = resolve({"cache": "taylorseer"}, file)
    assert flagged.config.method.cache.name == "taylorseer"
    assert flagged.origins()["cache"] == "flag"


@pytest.mark.parametrize("method", ["pab", "adacache", "tomesd"])
def test_what_print_config_shows_of_a_cache_can_be_given_back(method: str, tmp_path: Path) -> None:
    first = resolve({"method": method})
    file = tmp_path / "run.yaml"
    file.write_text(first.as_yaml())
    assert resolve({}, file).config == first.config


@pytest.mark.parametrize("cache", ["adacache", "none"])
def test_a_method_that_is_a_cache_takes_no_other(cache: str, tmp_path: Path) -> None:
    message = f"method pab is itself the cache 'pab', and cannot run with cache '{cache}'"
    file = tmp_path / "run.yaml"
    file.write_text(f"cache: {cache}\n")
    for given in (lambda: resolve({"method": "pab", "cache": cache}), lambda: resolve({"method": "pab"}, file)):
        with pytest.raises(ConfigError, match=message):
            given()
    with pytest.raises(ConfigError, match=message):
        method_config("pab", {"cache": cache})
    assert method_config("pab", {"cache": "pab"}).cache.name == "pab"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"cache": "pba"}, "cache 'pba' is unknown; did you mean 'pab'"),
        ({"cache": "tomesd"}, "tomesd merges tokens and is no cache"),
        ({"merge": "tome"}, "merge 'tome' is unknown; did you mean 'tomesd'"),
        ({"merge": "tomesd"}, "needs dense attention: the masks of 'adaspa' do not fit merged tokens"),
        ({"method": "tomesd", "merge": "none"}, "method tomesd is itself the merge 'tomesd'"),
        (
            {"method": "tomesd", "attention_backend": "reference"},
            "PyTorch's attention kernels, not the backend 'reference'",
        ),
        ({"cache": "magcache", "model": "hunyuan"}, "needs the magnitude ratios of this model"),
        ({"cache": "magcache", "magcache_ratios": (1.0, 0.0)}, "magcache_ratios must be numbers above 0"),
        ({"method": "pab", "true_cfg_scale": 2.0, "negative_prompt": "x"}, "runs two branches"),
        ({"pab_range": 0}, "pab_range must be a number from 1 on, got 0"),
        ({"pab_timesteps": (1,)}, "pab_timesteps must be a lower and an upper bound"),
        ({"pab_timesteps": (800, 100)}, "pab_timesteps must be a lower and an upper bound"),
        ({"first_block_threshold": -0.1}, "first_block_threshold must be a number from 0 on"),
        ({"first_block_threshold": float("nan")}, "first_block_threshold must be a number from 0 on"),
        ({"taylorseer_interval": 0}, "taylorseer_interval must be a number from 1 on"),
        ({"taylorseer_warmup": 0}, "taylorseer_warmup must be a number from 1 on"),
        ({"adacache_thresholds": (0.2, 0.1, 0.3, 0.4, 0.5)}, "adacache_thresholds must be ascending"),
        ({"adacache_thresholds": (0.1,)}, "adacache_reuses must be 2 numbers of steps"),
        ({"adacache_reuses": (1, 1, 1, 1, 1, -1)}, "adacache_reuses must be 6 numbers of steps"),
        ({"adacache_motion_reference": 0.0}, "adacache_motion_reference must be above 0"),
        ({"tome_ratio": 0.8}, r"tome_ratio must lie in \[0, 0.75\], the share of tokens off the grid \[1, 2, 2\]"),
        ({"tome_ratio": -0.1}, "tome_ratio must lie in"),
        ({"tome_grid": (2, 2)}, "tome_grid must be three strides"),
        ({"tome_grid": (1, 0, 2)}, "tome_grid must be three strides"),
    ],
)
def test_what_makes_no_sense_is_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(flags)
    assert "\n" not in caught.value.message


def test_the_bundled_model_knows_its_ratios() -> None:
    config = resolve({"cache": "magcache"}).config
    assert isinstance(config.method.cache, MagCacheConfig)
    assert len(config.method.cache.magcache_ratios) == config.sampling.steps


def test_a_value_of_another_type_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("magcache_ratios: [a]\n")
    with pytest.raises(ConfigError, match=r"magcache_ratios in .* must be a list of numbers"):
        resolve({}, file)

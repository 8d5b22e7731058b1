"""Which of the given settings mean nothing to the method, cache and merging that were chosen."""

from typing import Any

import pytest

from adaspa_cli.config.load import method_config


@pytest.mark.parametrize(
    ("method", "settings", "ignored"),
    [
        ("full", {"sparsity": 0.5, "lse_cache": False}, ("sparsity", "lse_cache")),
        ("full", {"max_error": 0.1, "search_rows": 8, "block_size": 12}, ("max_error", "search_rows", "block_size")),
        ("minference", {"lse": "fresh", "block_size": 32}, ("lse",)),
        ("tomesd", {"sparsity": 0.5, "tome_ratio": 0.25}, ("sparsity",)),
        ("diffusers", {"block_size": 32}, ("block_size",)),
        ("adaspa", {"sparsity": 0.5, "search_steps": [1], "pab_range": 3}, ("pab_range",)),
        ("adaspa", {"cache": "first-block", "first_block_threshold": 0.1, "pab_range": 3}, ("pab_range",)),
        ("adaspa", {"cache": "none", "merge": "none", "attention_backend": "reference"}, ()),
        ("frame-region", {"head_adaptive": True, "lse_cache": True}, ("head_adaptive",)),
        ("minference", {"lse_cache": True, "search_steps": [2], "search_steps_for": 4}, ("lse_cache",)),
        ("adacache", {"adacache_motion": False, "adacache_motion_reference": 0.5}, ("adacache_motion_reference",)),
        ("magcache-calibration", {"magcache_threshold": 0.5}, ("magcache_threshold",)),
        ("adaspa", {"masks_fallback": "warn"}, ("masks_fallback",)),
        ("adaspa", {"masks": "a.safetensors", "masks_min_recall": 0.5, "masks_fallback": "warn"}, ()),
    ],
)
def test_what_a_method_has_no_use_for(method: str, settings: dict[str, Any], ignored: tuple[str, ...]) -> None:
    assert tuple(method_config(method, settings).ignored(settings)) == ignored


def test_settings_of_other_sections_are_not_the_method_s_to_judge() -> None:
    assert [*method_config("full", {}).ignored(["steps", "sparsity", "out", "method"])] == ["sparsity"]


@pytest.mark.parametrize(
    ("method", "settings", "reason"),
    [
        ("adaspa-plus", {"masks_fallback": "warn"}, "without --masks-min-recall"),
        ("adaspa", {"masks": "a.safetensors", "masks_fallback": "warn"}, "without --masks-min-recall"),
        ("adaspa-plus", {"search_rows": 8, "head_adaptive": True}, "with budget 'layer'"),
        ("adaspa", {"probes": 32}, "without repair 'probes'"),
        ("adaspa", {"cache": "first-block", "pab_range": 3}, "with cache first-block"),
        ("adacache", {"adacache_motion": False, "adacache_motion_reference": 0.5}, "without adacache_motion"),
        ("magcache-calibration", {"magcache_threshold": 0.5}, "with magcache_calibrate"),
        ("full", {"tome_ratio": 0.5}, "with merge none"),
        ("full", {"sparsity": 0.5}, "with method full"),
        ("minference", {"budget": "layer"}, "with method minference"),
    ],
)
def test_the_reason_is_the_one_that_holds(method: str, settings: dict[str, Any], reason: str) -> None:
    assert [*method_config(method, settings).ignored(settings).values()] == [reason]

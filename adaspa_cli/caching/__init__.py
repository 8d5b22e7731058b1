"""Methods that skip work between steps or merge tokens: one module per method."""

from adaspa_cli.caching.registry import make_cache, make_merging
from adaspa_cli.caching.step_cache import StepCache
from adaspa_cli.caching.tomesd import TokenMerging

__all__ = ["StepCache", "TokenMerging", "make_cache", "make_merging"]

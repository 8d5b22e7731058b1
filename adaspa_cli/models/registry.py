"""The family of a pipeline instance, and what a family checks before a run."""

from __future__ import annotations

import importlib
from typing import Any

from adaspa_cli.config import families
from adaspa_cli.config.schema import SamplingConfig
from adaspa_cli.errors import ModelError
from adaspa_cli.models.family import Family


def family_of(pipe: Any) -> Family:
    """The family of a pipeline instance, which may be of a subclass of the family's class.

    Raises:
        ModelError: adaspa has no adapter for its class.
    """
    names = {kind.__name__ for kind in type(pipe).__mro__}  # not isinstance: the classes take seconds to import
    for facts in families.FAMILIES:
        if facts.pipeline in names:
            family: Family = importlib.import_module(facts.module).FAMILY
            return family
    raise ModelError(f"no adapter for {type(pipe).__name__}", hint=f"known: {families.known_pipelines()}")


def check_sampling(pipe: Any, sampling: SamplingConfig) -> None:
    """Refuse a size, a number of frames or a kind of guidance that the model does not have.

    Raises:
        ConfigError: with the nearest valid value.
    """
    facts = family_of(pipe).facts
    facts.check(facts.size_rule(pipe.transformer.config, {} if pipe.vae is None else pipe.vae.config), sampling)

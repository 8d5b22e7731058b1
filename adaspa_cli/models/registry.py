"""The family of a pipeline, and what it checks before a run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from adaspa_cli.attention.layout import OrderName
from adaspa_cli.config import families
from adaspa_cli.config.families import FamilyFacts
from adaspa_cli.config.schema import GenerateConfig, SamplingConfig
from adaspa_cli.errors import ConfigError, ModelError
from adaspa_cli.models.attachment import Attachment
from adaspa_cli.models.family import Family
from adaspa_cli.models.forward import Attend


def family_of(pipe: Any) -> Family:
    """The family of a pipeline instance, which may be of a subclass of the family's class.

    Raises:
        ModelError: adaspa has no adapter for its class.
    """
    names = {kind.__name__ for kind in type(pipe).__mro__}  # not isinstance: the classes take seconds to import
    for facts in families.FAMILIES:
        if names & {facts.pipeline, *facts.variants}:
            return heavy(facts)
    raise ModelError(f"no adapter for {type(pipe).__name__}", hint=f"known: {families.known_pipelines()}")


def heavy(facts: FamilyFacts) -> Family:
    """The heavy part of a family."""
    family: Family = importlib.import_module(facts.module).FAMILY
    return family


def attach(pipe: Any, attend: Attend, token_order: OrderName = "raster") -> Attachment:
    """Put adaspa's processors on a pipeline instance, whose video tokens then come in the named order.

    Raises:
        ModelError: adaspa has no adapter for its class.
        RunError: adaspa is applied to it already.
    """
    family = family_of(pipe)
    attachment: Attachment = family.attachment(family, pipe, attend, token_order)
    return attachment


def check_sampling(pipe: Any, sampling: SamplingConfig) -> None:
    """Refuse a size, a number of frames or a kind of guidance that the model does not have.

    Raises:
        ConfigError: with the nearest valid value.
    """
    family = family_of(pipe)
    family.facts.check(family.size_rule(pipe), sampling, [one.config for one in family.transformers(pipe)])


def check_read(pipe: Any, config: GenerateConfig, prompts: Iterable[str], note: Callable[[str], None]) -> None:
    """Say what the text encoders of a pipeline will not read of the prompts of a run, in a line for each encoder.

    Raises:
        ConfigError: there is such a thing, and ``strict_prompt`` is set.
    """
    if getattr(pipe, "tokenizer", None) is None:
        return  # random weights: there is nothing that reads
    family, negative = family_of(pipe), config.sampling.negative_prompt
    texts = [*prompts, *([negative] if negative and family.facts.guided(config.sampling) else [])]
    for reader in family.readers(pipe):
        unread = reader.unread(texts)
        if unread and config.prompts.strict_prompt:
            raise ConfigError(f"{config.model.source} {unread}", hint="shorten the prompt, or drop --strict-prompt")
        if unread:
            note(f"{config.model.source} {unread}; --strict-prompt refuses such prompts")

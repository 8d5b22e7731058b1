"""Whether a mask file fits a run, as far as its header tells. Every refusal names the field. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from adaspa_cli.attention.layout import OrderName, TokenLayout, same_video_blocks
from adaspa_cli.config.architecture import Architecture
from adaspa_cli.config.families import Grid
from adaspa_cli.config.kept_blocks import most_needed
from adaspa_cli.config.methods import SearchingConfig
from adaspa_cli.config.presets import preset_names
from adaspa_cli.config.schema import MethodConfig, ModelConfig, SamplingConfig
from adaspa_cli.errors import MaskFileError
from adaspa_cli.maskfiles.description import ModelFacts
from adaspa_cli.maskfiles.fitting import flags_to_fit
from adaspa_cli.maskfiles.header import Described

if TYPE_CHECKING:
    from adaspa_cli.maskfiles.reader import MaskFile


def config_hash(transformers: Sequence[Any]) -> str:
    """SHA-256 of the configuration of transformers, without what diffusers notes of versions and folders."""
    settings: list[Any] = [
        {key: value for key, value in dict(transformer.config).items() if not key.startswith("_")}
        for transformer in transformers
    ]
    content = settings[0] if len(settings) == 1 else settings
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def model_facts(pipeline: str, transformers: Sequence[Any], model: ModelConfig) -> ModelFacts:
    """What a mask file says of a model, from the class of its pipeline and its transformers."""
    return ModelFacts(model.model, model.random_weights, pipeline, config_hash(transformers))


def open_masks(config: MethodConfig) -> MaskFile | None:
    """The mask file that a method's settings name, checked against them; None if they name none.

    Raises:
        MaskFileError: it cannot be read, is corrupt, or does not fit the settings.
    """
    if config.mask_file.masks is None:
        return None
    from adaspa_cli.maskfiles.reader import MaskFile

    file = MaskFile.open(config.mask_file.masks)
    check_settings(file, config)
    return file


def check_settings(masks: Described, config: MethodConfig) -> None:
    """Refuse masks that were searched with other settings of the method, or do not hold its sparsity.

    Raises:
        MaskFileError: names the field, and the flags that fit the run to the file.
    """
    facts, method = masks.description, config.searching
    flags = flags_to_fit(facts, config)
    hint = f"use {' '.join(flags)}"
    if len(flags) == 1 and method.ranks_blocks and facts.method.sparsity != method.sparsity:
        hint = f"{hint}; a file made with --keep-ranking serves other sparsities"
    _same(masks, "algorithm", facts.method.algorithm, method.name, hint)
    _same(masks, "block_size", facts.block_size, method.block_size, hint)
    if facts.ranked is None or method.sparsity_ramp is not None:
        _same(masks, "sparsity", facts.method.sparsity, method.sparsity_ramp or method.sparsity, hint)
    if facts.ranked is None:
        _same(masks, "head_adaptive", facts.method.head_adaptive, method.adapts_heads, hint)
    _same(masks, "selection", facts.method.selection, method.selects_by, hint)
    _same(masks, "layer_budget", facts.method.layer_budget, method.layer_budget, hint)
    _check_order(masks, config.order, hint)
    _check_ranking(masks, method)
    _check_search_steps(masks, method)


def _check_ranking(masks: Described, method: SearchingConfig) -> None:
    facts = masks.description
    needed = most_needed(method.sparsity, facts.video_blocks, method.adapts_heads)
    if facts.ranked is not None and needed > facts.ranked:
        raise MaskFileError(
            f"{masks.path} does not fit the run: sparsity {method.sparsity} needs the {needed} heaviest blocks of "
            f"a row, and the file ranks {facts.ranked}",
            hint=f"use a higher --sparsity, or --keep-ranking {needed / facts.video_blocks:.3f} when the masks are "
            "searched",
        )


def _check_search_steps(masks: Described, method: SearchingConfig) -> None:
    facts = masks.description
    exact = method.search_steps_for is None
    firsts = {first for _, first in facts.stages}  # a second transformer searches there in any case
    searched = tuple(step for step in facts.search_steps if step not in firsts or step in method.search_steps)
    if exact and searched != method.search_steps[: len(searched)]:
        hint = "drop --search-steps: with --masks the file's are used"
        _same(masks, "search_steps", list(facts.search_steps), list(method.search_steps), hint)


def check_name(masks: Described, model: ModelConfig) -> None:
    """Refuse masks of another preset, or of random weights for real ones.

    Two presets of the same architecture, such as ``hunyuan`` and ``fasthunyuan``, are told apart by their names; other
    names say nothing, because a checkpoint may lie anywhere.

    Raises:
        MaskFileError: names the field.
    """
    facts, presets = masks.description.model, preset_names("models")
    if facts.name in presets and model.model in presets:
        _same(masks, "model", facts.name, model.model, _of_model(masks))
    _same(masks, "random_weights", facts.random_weights, model.random_weights)


def check_model(masks: Described, pipeline: str, transformers: Sequence[Any]) -> None:
    """Refuse masks of a model of another architecture.

    Raises:
        MaskFileError: names the field.
    """
    facts = masks.description.model
    _same(masks, "pipeline", facts.pipeline, pipeline, _of_model(masks))
    _same(masks, "transformer config", facts.transformer[:12], config_hash(transformers)[:12], _of_model(masks))


def check_architecture(masks: Described, model: Architecture, sampling: SamplingConfig) -> None:
    """Refuse masks of another architecture, or of another size of video, by what is known before the model is loaded.

    Raises:
        MaskFileError: names the field.
    """
    facts, hint = masks.description, _of_model(masks)
    _same(masks, "pipeline", facts.model.pipeline, model.facts.pipeline, hint)
    _same(masks, "layers", facts.layers, model.layers, hint)
    _same(masks, "heads", facts.heads, facts.heads if model.heads is None else model.heads, hint)
    _check_grid(masks, model.video_grid(sampling))


def check_branch(masks: Described, branch: str) -> None:
    """Raise MaskFileError for masks that a guidance branch of the run has no part in."""
    if branch not in masks.description.branches:
        raise MaskFileError(
            f"{masks.path} does not fit the run: it has no masks of the guidance branch '{branch}'",
            hint="search the masks with the guidance that the run has, or add --share-cfg-masks",
        )


def check_call(masks: Described, branch: str, layout: TokenLayout) -> None:
    """Refuse masks for other tokens or without the guidance branch of a call.

    Text may be longer or shorter as long as the same blocks are free of it: with the text last it usually is.

    Raises:
        MaskFileError: names the field.
    """
    check_branch(masks, branch)
    facts = masks.description
    if layout == facts.layout:
        return
    _check_grid(masks, (layout.frames, layout.height, layout.width))
    _check_order(masks, layout.order)
    _same(masks, "text_position", facts.layout.text_position, layout.text_position)
    if not same_video_blocks(facts.layout, layout, (facts.block_size, facts.block_size)):
        _same(masks, "text_tokens", facts.layout.text_tokens, layout.text_tokens)


def check_stages(masks: Described, steps: int, stages: Sequence[int]) -> None:
    """Refuse masks that lack those of a transformer which makes steps of the run: it would be dense throughout.

    Args:
        masks: of a search that may have ended before that transformer's first step.
        steps: of the run.
        stages: the first step of each transformer after the first.

    Raises:
        MaskFileError: says which transformer.
    """
    facts = masks.description
    _same(masks, "number of transformers", 1 + len(facts.stages), 1 + len(stages))
    theirs, own = (0, *(first for _, first in facts.stages), facts.steps), (0, *stages, steps)
    for number, ((first, end), (begin, stop)) in enumerate(zip(pairwise(theirs), pairwise(own), strict=True)):
        # The first one may have masks of no step: where all its steps are warm-up.
        searched = first < end and (number == 0 or any(first <= step < end for step in facts.search_steps))
        if begin < stop and not searched:
            raise MaskFileError(
                f"{masks.path} does not fit the run: it has no masks of transformer {number + 1}, which makes steps "
                f"{begin} to {stop - 1}",
                hint=f"search the masks with more than {facts.steps} steps",
            )


def _of_model(masks: Described) -> str:
    return f"the masks were searched with --model {masks.description.model.name}"


def _check_grid(masks: Described, grid: Grid) -> None:
    hint = "masks are valid for one video size; frames, height and width are in latent tokens"
    for name, size in zip(("frames", "height", "width"), grid, strict=True):
        _same(masks, name, getattr(masks.description.layout, name), size, hint)


def _check_order(masks: Described, order: OrderName, hint: str | None = None) -> None:
    found = masks.description.layout.order
    _same(masks, "token_order", found, order, hint or f"use --token-order {found}")


def _same(masks: Described, field: str, found: object, wanted: object, hint: str | None = None) -> None:
    if found != wanted:
        message = f"{masks.path} does not fit the run: {field} is {found} in the file and {wanted} in the run"
        raise MaskFileError(message, hint=hint)

"""Checks that need no torch, so that errors appear at once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adaspa_cli.errors import MaskFileError, shortened

if TYPE_CHECKING:
    from adaspa_cli.config import GenerateConfig, ModelConfig, Resolved

Note = Callable[[str], None]

_MOST = 8  # repeated values that a message names


def check_early(
    note: Note, resolved: Resolved, folder: str, *, may_be_complete: bool = False, download: bool = True
) -> list[str]:
    """Check a run as far as that takes no time; returns its prompts, each once.

    Args:
        note: receives messages for the user, a line at a time.
        folder: where its results go.
        may_be_complete: whether the run may need no model, because all is there.
        download: whether the hub may be asked.

    Raises:
        AdaspaError: the size, the folder, the prompts, a picture, a LoRA, the mask file, the device or the checkpoint
            is of no use, or the memory too small for it; with ``strict_prompt`` also a word or a size that the model
            was not trained on.
    """
    from adaspa_cli.config import architecture
    from adaspa_cli.config.devices import check_device, known_kind, machine_memory
    from adaspa_cli.config.model_files import check_files
    from adaspa_cli.config.packages import check_packages
    from adaspa_cli.config.weights import check_weights_fit
    from adaspa_cli.files.folders import check_folder
    from adaspa_cli.files.pictures import read_pictures
    from adaspa_cli.jobs.prompts import read_prompts

    config = resolved.config
    architecture.check_early(config.model, config.sampling, config.method.cache)
    check_folder(folder)
    check_masks(config)
    if config.prompts.prompts == "-" and sys.stdin.isatty():
        note("reading prompts, one a line; Ctrl-D after the last")
    prompts = read_prompts(config.prompts)
    for key, picture in read_pictures(config.sampling.pictures).items():
        note(f"{key.replace('_', ' ')} {picture.note(config.sampling.height, config.sampling.width)}")
    check_packages(config.model)
    check_files(config.model, download=download)
    if not may_be_complete:
        check_device(config.model, config.method, planned=not download)
        if download and known_kind(config.model.device) == "cpu":
            check_weights_fit(config.model, "cpu", machine_memory()[1])
        _check_weights(config.model, download=download)
    note_repeated(note, "prompt", prompts)
    return list(dict.fromkeys(prompts))


def _check_weights(model: ModelConfig, *, download: bool) -> None:
    """Refuse a folder that is no whole checkpoint, and a hub id that is neither on the hub nor in its cache, or is of
    another kind than the preset."""
    from adaspa_cli.config.architecture import check_complete, check_preset, facts_of_index
    from adaspa_cli.config.model_source import check_available

    folder = Path(model.weights).expanduser()
    if model.random_weights or model.is_bundled:
        return
    if folder.is_dir():
        check_complete(folder)
    elif download and (index := check_available(model.weights)) is not None:
        check_preset(model, facts_of_index(model, index).pipeline)


def check_masks(config: GenerateConfig) -> None:
    """Refuse the mask file of a run, if it has one, that is not whole, or that does not fit its settings.

    Raises:
        MaskFileError: names what does not fit.
    """
    if config.method.mask_file.masks is None:
        return
    from adaspa_cli.config.architecture import known_architecture
    from adaspa_cli.maskfiles.check import check_architecture, check_branch, check_name, check_settings
    from adaspa_cli.maskfiles.header import Described

    masks = Described.open(config.method.mask_file.masks)
    check_settings(masks, config.method)
    check_name(masks, config.model)
    architecture = known_architecture(config.model)
    if architecture is not None:
        check_architecture(masks, architecture, config.sampling)
        if architecture.facts.guided(config.sampling) and not config.method.share_cfg_masks:
            check_branch(masks, "uncond")


def check_readable(*masks: Path) -> None:
    """Refuse mask files that are missing or not readable.

    Raises:
        MaskFileError: names the first of them.
    """
    for path in masks:
        try:
            path.expanduser().open("rb").close()
        except OSError as error:
            raise MaskFileError(f"cannot read masks from {path}: {error.strerror}") from error


def note_repeated(note: Note, key: str, values: Sequence[object]) -> None:
    """Say which values were given more than once."""
    twice = [shortened(str(value), 60) for value, times in Counter(values).items() if times > 1]
    if twice:
        shown = ", ".join(twice[:_MOST])
        more = f" and {len(twice) - _MOST} more" if len(twice) > _MOST else ""
        note(f"{key} given more than once, used once: {shown}{more}")

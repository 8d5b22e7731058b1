"""The policy of a run, with masks from a file if the settings name one."""

from adaspa_cli.config.schema import MethodConfig
from adaspa_cli.maskfiles.check import check_method
from adaspa_cli.maskfiles.reader import MaskFile
from adaspa_cli.maskfiles.stored import StoredMasks, stored_schedule
from adaspa_cli.masks.methods.registry import make_policy
from adaspa_cli.masks.policy import MaskPolicy


def open_masks(config: MethodConfig) -> MaskFile | None:
    """The mask file that a method's settings name, checked against them; None if they name none.

    Raises:
        MaskFileError: it cannot be read, is corrupt, or does not fit the settings.
    """
    if config.mask_file.masks is None:
        return None
    file = MaskFile.open(config.mask_file.masks)
    check_method(file, config.searching)
    return file


def run_policy(config: MethodConfig, steps: int) -> MaskPolicy:
    """Return the policy of a run with ``steps`` denoising steps, with masks from a file if the settings name one.

    Raises:
        ConfigError, MaskFileError: as :func:`~adaspa_cli.masks.methods.registry.make_policy` and :func:`open_masks`.
    """
    file = open_masks(config)
    return make_policy(config.algorithm, steps) if file is None else stored_policy(config, file, steps)


def stored_policy(config: MethodConfig, file: MaskFile, steps: int) -> StoredMasks:
    """Return the policy of a run with ``steps`` denoising steps that takes its masks from a file."""
    facts = file.description
    return StoredMasks(
        file=file,
        schedule=stored_schedule(facts.search_steps, facts.steps, steps, from_start=config.mask_file.masks_from_start),
        sparsity=config.searching.sparsity,
        head_adaptive=config.searching.adapts_heads,
        method=make_policy(config.algorithm, steps),
        min_recall=config.mask_file.masks_min_recall,
        falls_back=config.mask_file.masks_fallback == "search",
    )

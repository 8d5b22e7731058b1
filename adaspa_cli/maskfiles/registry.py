"""From a method's settings to its policy."""

from adaspa_cli.config.methods import FrameRegionConfig, MInferenceConfig, SparseConfig, SparseVideoGenConfig
from adaspa_cli.config.schema import MethodConfig
from adaspa_cli.maskfiles.check import check_method
from adaspa_cli.maskfiles.reader import MaskFile
from adaspa_cli.maskfiles.stored import StoredMasks, stored_schedule
from adaspa_cli.masks.methods.adaspa import AdaSpa
from adaspa_cli.masks.methods.frame_region import FrameRegion
from adaspa_cli.masks.methods.full import Full
from adaspa_cli.masks.methods.minference import MInference
from adaspa_cli.masks.methods.sparse_videogen import SparseVideoGen
from adaspa_cli.masks.policy import MaskPolicy


def make_policy(config: MethodConfig, steps: int) -> MaskPolicy:
    """Return the policy of a run with ``steps`` denoising steps.

    Raises:
        ConfigError: a search step lies beyond the last step.
    """
    algorithm = config.algorithm
    if not isinstance(algorithm, SparseConfig):
        return Full()
    schedule, block = algorithm.schedule(steps), algorithm.block_size
    match algorithm:
        case SparseVideoGenConfig():
            return SparseVideoGen(algorithm.sparsity, schedule[0], (block, block))
        case MInferenceConfig():
            return MInference(algorithm.sparsity, schedule[0], block)
        case FrameRegionConfig():
            return FrameRegion(algorithm.sparsity, schedule, block, lse_cache=algorithm.lse_cache)
        case _:
            return AdaSpa(
                sparsity=algorithm.sparsity,
                search_steps=schedule,
                block_size=(block, block),
                budget="head-adaptive" if algorithm.head_adaptive else "row",
                lse_cache=algorithm.lse_cache,
            )


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
        ConfigError, MaskFileError: as :func:`make_policy` and :func:`open_masks`.
    """
    file = open_masks(config)
    return make_policy(config, steps) if file is None else stored_policy(config, file, steps)


def stored_policy(config: MethodConfig, file: MaskFile, steps: int) -> StoredMasks:
    """Return the policy of a run with ``steps`` denoising steps that takes its masks from a file."""
    facts = file.description
    return StoredMasks(
        file=file,
        schedule=stored_schedule(facts.search_steps, facts.steps, steps, from_start=config.mask_file.masks_from_start),
        sparsity=config.searching.sparsity,
        head_adaptive=config.searching.adapts_heads,
        method=make_policy(config, steps),
        min_recall=config.mask_file.masks_min_recall,
        falls_back=config.mask_file.masks_fallback == "search",
    )

"""The options of ``search-masks`` beyond the settings of a run. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adaspa_cli.config.schema import MethodConfig
from adaspa_cli.errors import ConfigError, OutputError


@dataclass(frozen=True)
class SearchOptions:
    """What is searched and kept.

    Attributes:
        out: the mask file.
        keep_ranking: density up to which each row's blocks are kept in their order; None keeps one sparsity's mask.
        keep_sums: keep the averaged block sums too, in float16.
        first_step_only: search only at the first search step.
        resume: continue an unfinished search; do nothing if the file exists.
    """

    out: Path
    keep_ranking: float | None = None
    keep_sums: bool = False
    first_step_only: bool = False
    resume: bool = False

    def check(self, method: MethodConfig) -> None:
        """Refuse what cannot be searched or kept.

        Raises:
            ConfigError: a method that does not search, a cache that skips calls, or a ranking that is too short.
            OutputError: the file is a folder, already exists, or has another suffix.
        """
        searching = method.searching
        if method.mask_file.masks is not None:
            raise ConfigError("masks from a file are not searched", hint="drop masks")
        if method.cache.name != "none":
            raise ConfigError(f"cache '{method.cache.name}' skips calls that a search needs", hint="drop the cache")
        searching.check_mask_file()
        if self.keep_ranking is not None:
            self._check_ranking(self.keep_ranking, method)
        if self.out.is_dir():
            raise OutputError(f"{self.out} is a folder", hint="name a file: --out masks.safetensors")
        if self.out.suffix != ".safetensors":
            raise OutputError(
                f"the name of a mask file ends in .safetensors, got {self.out.name}", hint="--out masks.safetensors"
            )
        if self.out.exists() and not self.resume:
            raise OutputError(f"{self.out} already exists", hint="choose another --out, or remove it")

    def _check_ranking(self, density: float, config: MethodConfig) -> None:
        method = config.searching
        if not method.ranks_blocks:
            raise ConfigError(
                f"the masks of '{config.method}' can't be derived from a ranking", hint="drop --keep-ranking"
            )
        needed = min(1.0, (1 - method.sparsity) * (1.5 if method.adapts_heads else 1))
        if not needed - 1e-9 <= density <= 1:
            raise ConfigError(
                f"keep_ranking must lie in [{needed:g}, 1], got {density:g}",
                hint=f"sparsity {method.sparsity:g} keeps up to {needed:.0%} of the blocks of a row",
            )

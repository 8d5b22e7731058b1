"""The settings of a run that takes its masks from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adaspa_cli.config.fields import check_fields, one_of, setting, within
from adaspa_cli.config.names import FALLBACKS
from adaspa_cli.errors import ConfigError


@dataclass(frozen=True)
class MaskFileConfig:
    """Masks from a file instead of a search.

    Attributes:
        masks: path of the mask file; None: search. Its masks are used from the search steps of the file on, scaled to
            the steps of the run.
        masks_from_start: use the first masks of the file from step 0 on, without the dense warm-up.
        masks_min_recall: mean recall of a layer, in (0, 1], below which it falls back. The recall is measured on the
            run's own attention at the first step with a mask, which is dense for that; None: not measured.
        masks_fallback: what a layer below ``masks_min_recall`` does: ``search`` for new masks in this run, or ``warn``
            and use the loaded ones.
    """

    masks: str | None = None
    masks_from_start: bool = False
    masks_min_recall: float | None = setting(None, within("(0, 1]", lambda value: 0 < value <= 1))
    masks_fallback: str = setting("search", one_of(FALLBACKS))

    def __post_init__(self) -> None:
        check_fields(self)
        if self.masks is None and (self.masks_from_start or self.masks_min_recall is not None):
            key = "masks_from_start" if self.masks_from_start else "masks_min_recall"
            raise ConfigError(f"{key} needs a mask file", hint="add --masks FILE; adaspa search-masks makes one")

    @property
    def idle(self) -> Mapping[str, str]:
        """Keys without effect, given the others, each with what takes it from them."""
        return {"masks_fallback": "without --masks-min-recall"} if self.masks_min_recall is None else {}

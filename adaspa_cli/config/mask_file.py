"""What a run can be told about a mask file that it takes its masks from."""

from __future__ import annotations

from dataclasses import dataclass

from adaspa_cli.config.fields import check_fields, one_of, setting, within
from adaspa_cli.errors import ConfigError

FALLBACKS = ("search", "warn")


@dataclass(frozen=True)
class MaskFileConfig:
    """Masks from a file instead of a search.

    Attributes:
        masks: path of the mask file; None searches. Its search steps, scaled to the run's steps, say when its masks
            begin to hold.
        masks_from_start: use its first masks from step 0 on, without the dense warm-up.
        masks_min_recall: recall in (0, 1] below which a layer falls back. It is measured on the run's own attention
            when the first mask begins to hold, which is then a dense step; None measures nothing.
        masks_fallback: what happens in layers whose mean recall is lower: ``search`` searches them anew, ``warn`` uses
            the loaded mask.
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

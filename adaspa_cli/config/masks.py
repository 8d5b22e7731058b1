"""What a run can be told about a mask file that it takes its masks from."""

from __future__ import annotations

from dataclasses import dataclass

from adaspa_cli.config.names import SEARCHING
from adaspa_cli.errors import ConfigError, nearest

FALLBACKS = ("search", "warn")


@dataclass(frozen=True)
class MaskFileSettings:
    """Masks from a file instead of a search.

    Attributes:
        masks: the mask file; its search steps, scaled to the run's steps, say when its masks begin to hold.
        masks_from_start: use its first masks from step 0 on, without the dense warm-up.
        masks_min_recall: measure each layer's recall on the run's own attention when its first mask begins to hold,
            which is then a dense step; None measures nothing.
        masks_fallback: what happens in layers whose mean recall is lower: ``search`` searches them anew, ``warn`` uses
            the loaded mask.
    """

    masks: str | None = None
    masks_from_start: bool = False
    masks_min_recall: float | None = None
    masks_fallback: str = "search"

    def check_masks(self, algorithm: str) -> None:
        """Raise ConfigError for settings that contradict each other, or a method that searches no masks."""
        if self.masks_fallback not in FALLBACKS:
            raise ConfigError(
                f"masks_fallback '{self.masks_fallback}' is unknown{nearest(self.masks_fallback, FALLBACKS)}",
                hint=f"one of {', '.join(FALLBACKS)}",
            )
        if self.masks_min_recall is not None and not 0 < self.masks_min_recall <= 1:
            raise ConfigError(f"masks_min_recall must lie in (0, 1], got {self.masks_min_recall}")
        if self.masks is None and (self.masks_from_start or self.masks_min_recall is not None):
            key = "masks_from_start" if self.masks_from_start else "masks_min_recall"
            raise ConfigError(f"{key} needs a mask file", hint="add --masks FILE; adaspa search-masks makes one")
        if self.masks is not None and algorithm not in SEARCHING:
            raise ConfigError(
                f"masks are of no use to '{algorithm}', which does not search for masks",
                hint=f"methods that do: {', '.join(SEARCHING)}",
            )

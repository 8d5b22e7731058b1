"""What every model family has: one :class:`Family`, exported as ``FAMILY`` by its module in :mod:`.families`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from adaspa_cli.attention.layout import OrderName
from adaspa_cli.config.families import FamilyFacts
from adaspa_cli.models.attachment import Attachment, Attend


class Attach(Protocol):
    """Puts adaspa's processors on a pipeline instance, whose video tokens then come in the named order."""

    def __call__(self, pipe: Any, attend: Attend, token_order: OrderName = "raster") -> Attachment: ...


@dataclass(frozen=True)
class Family:
    """What differs between model families.

    Attributes:
        facts: what is known without torch.
        attach: put adaspa's processors on a pipeline instance.
    """

    facts: FamilyFacts
    attach: Attach

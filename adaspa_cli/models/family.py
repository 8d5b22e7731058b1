"""What every model family has: one :class:`Family`, exported as ``FAMILY`` by its module in :mod:`.families`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adaspa_cli.config.families import FamilyFacts
from adaspa_cli.models.attachment import Attachment, Attend


@dataclass(frozen=True)
class Family:
    """What differs between model families.

    Attributes:
        facts: what is known without torch.
        attach: put adaspa's processors on a pipeline instance.
    """

    facts: FamilyFacts
    attach: Callable[[Any, Attend], Attachment]

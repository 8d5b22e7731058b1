"""Who attends to whom: one module per method, pure torch."""

from adaspa_cli.masks.order import HeadOrder
from adaspa_cli.masks.policy import Action, Call, FoundMask, MaskPolicy

__all__ = ["Action", "Call", "FoundMask", "HeadOrder", "MaskPolicy"]

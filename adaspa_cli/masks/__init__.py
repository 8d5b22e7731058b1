"""The choice of blocks: one module per method, pure torch."""

from adaspa_cli.masks.order import HeadOrder
from adaspa_cli.masks.plan import CallPlan
from adaspa_cli.masks.policy import Call, FoundMask, MaskPolicy

__all__ = ["Call", "CallPlan", "FoundMask", "HeadOrder", "MaskPolicy"]

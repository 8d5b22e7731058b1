"""Noise that a scheduler draws on the CPU comes to the GPU without a wait.

A CPU generator makes a seed mean the same on every machine. But a copy from ordinary memory waits until the GPU has
done all that was queued before, and what is drawn after it begins only then. From pinned memory the copy is queued like
a kernel, so that all of a step's noise is drawn while the GPU still works on the transformer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PinnedNoise(TorchFunctionMode):
    """Within it ``torch.randn`` on the CPU draws into pinned memory, and what is there is copied without waiting.

    The numbers are the same.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.randn and torch.device(kwargs.get("device") or "cpu").type == "cpu":
            kwargs["pin_memory"] = True
        elif func is Tensor.to and args[0].device.type == "cpu" and args[0].is_pinned():
            kwargs["non_blocking"] = True
        return func(*args, **kwargs)

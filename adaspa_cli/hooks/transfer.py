"""A small tensor copied from the device in the background, for a later decision; only reading it waits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OnItsWay:
    """A copy on the CPU, and on a GPU the event after which it is complete."""

    copy: Tensor
    done: torch.cuda.Event | None

    @classmethod
    def of(cls, x: Tensor) -> OnItsWay:
        """Begin to copy a tensor."""
        if x.device.type != "cuda":
            return cls(x.detach().clone(), None)
        copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x.detach(), non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(x.device))
        return cls(copy, done)

    def there(self) -> Tensor:
        """The tensor on the CPU."""
        if self.done is not None:
            self.done.synchronize()
        return self.copy

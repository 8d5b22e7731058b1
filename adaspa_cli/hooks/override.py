"""A method of one instance replaced by a wrapper, until it is given back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class Override:
    """A method of one instance replaced by a wrapper, and given back by :meth:`restore`."""

    def __init__(self, instance: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self._instance, self._name = instance, name
        self._before = instance.__dict__.get(name)
        original = getattr(instance, name)
        # Pipelines inspect the signatures of scheduler methods: wraps() keeps them visible.
        self._wrapper = functools.wraps(original)(wrap(original))
        setattr(instance, name, self._wrapper)

    def restore(self) -> None:
        """Put back what was there, unless somebody has wrapped the wrapper since."""
        if self._instance.__dict__.get(self._name) is not self._wrapper:
            return
        if self._before is None:
            delattr(self._instance, self._name)
        else:
            setattr(self._instance, self._name, self._before)

"""A method of one instance replaced by a wrapper; wrappers can be removed in any order."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

Method = Callable[..., Any]
Wrap = Callable[[Method], Method]
_STATE = "__getstate__"  # copy asks an instance for it


class Override:
    """A method of one instance replaced by a wrapper, and given back by :meth:`restore`.

    Several overrides of one method nest, the latest outside, and come off in any order; with the last of them the
    instance is as it was. Where an attribute belongs to another object (``torch.compile`` wraps a module in one that
    forwards its attributes), it is replaced there.
    """

    def __init__(self, instance: Any, name: str, wrap: Wrap) -> None:
        """
        Args:
            instance: whose method is replaced.
            name: of the method.
            wrap: makes the wrapper of a method. It is called again when a wrapper below comes off, so that it must
                keep no state of its own.
        """
        self._wrap = wrap
        chain = _Chain.of(instance, name)
        chain.add(self)
        self._chain: _Chain | None = chain

    def wrapped(self, method: Method) -> Method:
        """The wrapper round ``method``."""
        return self._wrap(method)

    def restore(self) -> None:
        """Take the wrapper off. May be called twice.

        If other code has wrapped the method since, calls pass through to the previous method.
        """
        if self._chain is not None:
            self._chain.drop(self)
            self._chain = None


class _Chain:
    """What stands in an instance's dictionary while overrides are on: the method, inside of their wrappers.

    Its slots keep it out of the hands of ``functools.update_wrapper``, which would copy its attributes to whatever
    other code wraps it, and keep them alive there.
    """

    __slots__ = ("_before", "_call", "_name", "_original", "_overrides", "_owner")

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name = owner, name
        self._before = name in vars(owner)
        self._original: Method = getattr(owner, name)
        self._call = self._original
        self._overrides: list[Override] = []

    @classmethod
    def of(cls, instance: Any, name: str) -> _Chain:
        """The chain of a method; a new one, not yet in place, where there is none."""
        owner = _owner(instance, name)
        present = vars(owner).get(name)
        ours = isinstance(present, _Chain) and present._owner is owner
        return present if ours else cls(owner, name)

    def add(self, override: Override) -> None:
        self._overrides.append(override)
        self._compose()
        vars(self._owner)[self._name] = self
        if _STATE not in vars(self._owner):
            vars(self._owner)[_STATE] = _State(self._owner)

    def drop(self, override: Override) -> None:
        self._overrides.remove(override)
        self._compose()
        # If other code has wrapped the chain it must stay, and passes calls through.
        if not self._overrides and vars(self._owner).get(self._name) is self:
            del vars(self._owner)[self._name]
            if self._before:
                vars(self._owner)[self._name] = self._original
        left = vars(self._owner)
        if isinstance(left.get(_STATE), _State) and not any(isinstance(value, _Chain) for value in left.values()):
            del left[_STATE]

    @property
    def own(self) -> dict[str, Any]:
        """What the instance itself had in its place."""
        return {self._name: self._original} if self._before else {}

    def _compose(self) -> None:
        self._call = self._original
        for override in self._overrides:
            self._call = override.wrapped(self._call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the instance has its own method, without wrappers: they belong to the original."""
        owner = memo.get(id(self._owner))
        if self._before:
            return copy.deepcopy(self._original, memo)
        return self._original if owner is None else getattr(type(owner), self._name).__get__(owner)

    # Pipelines inspect the signatures of scheduler methods, and hooks the names of what they wrap.
    @property
    def __wrapped__(self) -> Method:
        return self._original

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_original"), name)


class _State:
    """What ``copy`` takes of an instance: all but what is ours.

    A copy of an instance must not have the chains, which call the original's methods.
    """

    __slots__ = ("_owner",)

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def __call__(self) -> Any:
        getstate: Any = type(self._owner).__getstate__
        state = getstate(self._owner)
        if not isinstance(state, dict):
            return state
        left = {name: value for name, value in state.items() if not isinstance(value, _Chain | _State)}
        for value in state.values():
            if isinstance(value, _Chain):
                left |= value.own
        return left


def _owner(instance: Any, name: str) -> Any:
    """The object that an instance's method belongs to: itself, or the one that it forwards attributes to."""
    if name in vars(instance) or hasattr(type(instance), name):
        return instance
    compiled = getattr(instance, "_orig_mod", None)
    return getattr(getattr(instance, name), "__self__", instance) if compiled is None else _owner(compiled, name)

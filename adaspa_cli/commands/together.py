"""A command run by several processes together: one of them writes output, and all end together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import typer

from adaspa_cli import interrupts
from adaspa_cli.commands.guard import KEPT
from adaspa_cli.console import Console
from adaspa_cli.distributed.failure import (
    GRACE,
    Ended,
    Ending,
    LostContactError,
    end_soon,
    is_lost_contact,
    watch_signals,
)
from adaspa_cli.distributed.place import Place
from adaspa_cli.errors import AdaspaError, RunError

if TYPE_CHECKING:
    from adaspa_cli.config.parallel import ParallelConfig
    from adaspa_cli.distributed.world import World

_FIRST = 2.0  # seconds in which the leader can say what is wrong for all


@dataclass
class Member:
    """This process among those of a command.

    Attributes:
        place: that torchrun gave it; None where it is the only one.
        console: that says nothing where another process speaks.
    """

    place: Place | None
    console: Console
    _world: World | None = None

    @property
    def leads(self) -> bool:
        """Whether it plans, writes files and prints."""
        return self.place is None or self.place.leads

    def processes(self, parallel: ParallelConfig) -> int:
        """How many make each video together, those included that are to be launched."""
        return self.place.size if self.place else parallel.gpus

    def launches(self, parallel: ParallelConfig) -> bool:
        """Whether this process is to start them."""
        return self.place is None and parallel.gpus > 1

    @contextmanager
    def world(self, device: str, parallel: ParallelConfig) -> Iterator[World]:
        """Connect to the other processes, if there are any.

        Raises:
            BackendError: there is no GPU for this process.
        """
        from adaspa_cli.distributed.world import World, join

        if self.place is None:
            yield World()
            return
        branches, timeout = 2 if parallel.cfg_parallel else 1, parallel.collective_timeout
        with join(self.place, device, branches=branches, timeout=timeout) as world:
            self._world = world
            yield world

    def patience(self, error: Exception) -> float:
        """Seconds the launcher has to end this process, where another one is likelier to say what went wrong."""
        if self._world is None:
            return 0.0 if self.leads else _FIRST
        return GRACE if is_lost_contact(error) else 0.0

    def speaks(self) -> bool:
        """Whether this process says what went wrong: it is the first to ask."""
        return self._world is None or self._world.first_to_fail()


@contextmanager
def member(console: Console, place: Place | None, interrupted: str = KEPT) -> Iterator[Member]:
    """Run what is within as one of several processes; an error of one is said once.

    Args:
        interrupted: what to say after Ctrl-C.
    """
    if place is None:
        yield Member(None, console)
        return
    own, ending, code = Member(place, console if place.leads else console.muted()), Ending(), RunError.exit_code
    try:
        watch_signals(ending, f"{interrupted}\n" if place.leads else "")
        try:
            yield own
        except (typer.Exit, typer.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            ending.begin()
            code = _code(error)
            end_soon(code)
            _say_once(own, ending, error, code)
        finally:
            ending.begin()
    except Ended:  # also from one of the clauses above, before its first line
        raise typer.Exit(code) from None


def _say_once(own: Member, ending: Ending, error: Exception | KeyboardInterrupt, code: int) -> NoReturn:
    """Raise the error in the process that says it, and typer.Exit in the others."""
    if code == interrupts.EXIT_CODE or isinstance(error, KeyboardInterrupt):
        raise error if own.leads else typer.Exit(code)
    # It has been told already where a library made this error of Ended. The first to ask must say its error.
    if ending.told(own.patience(error)) or not own.speaks():
        raise typer.Exit(code)
    if is_lost_contact(error):
        raise LostContactError from error
    raise error


def _code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt) or interrupts.pressed():
        return interrupts.EXIT_CODE
    return error.exit_code if isinstance(error, AdaspaError) else RunError.exit_code


def started_by_torchrun() -> Place | None:
    """The place that the environment gives this process."""
    from adaspa_cli.distributed.place import place_of

    return place_of(os.environ)

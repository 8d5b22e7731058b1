"""A command run by several processes together: one of them writes output, and all end together."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from adaspa_cli import interrupts
from adaspa_cli.commands.guard import KEPT
from adaspa_cli.console import Console
from adaspa_cli.distributed.failure import GRACE, Ended, LostContactError, end_soon, is_lost_contact, watch_signals
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

    def speaks(self, error: Exception) -> bool:
        """Whether this process says what went wrong; those that need not wait until the launcher ends them."""
        if self._world is None:
            if not self.leads:
                time.sleep(_FIRST)
            return True
        if is_lost_contact(error):
            time.sleep(GRACE)
        return self._world.first_to_fail()


@contextmanager
def member(console: Console, place: Place | None, interrupted: str = KEPT) -> Iterator[Member]:
    """Run what is within as one of several processes; an error of one is said once.

    Args:
        interrupted: what to say after Ctrl-C.
    """
    if place is None:
        yield Member(None, console)
        return
    watch_signals(f"{interrupted}\n" if place.leads else "")
    own = Member(place, console if place.leads else console.muted())
    try:
        yield own
    except (typer.Exit, typer.Abort):
        raise
    except Ended:
        raise typer.Exit(1) from None
    except (Exception, KeyboardInterrupt) as error:
        code = _code(error)
        end_soon(code)
        if code == interrupts.EXIT_CODE and own.leads:
            raise
        try:
            if code == interrupts.EXIT_CODE or not own.speaks(error):  # type: ignore[arg-type]
                raise typer.Exit(code) from None
        except Ended:
            raise typer.Exit(code) from None
        if is_lost_contact(error):
            raise LostContactError from error
        raise


def _code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt) or interrupts.pressed():
        return interrupts.EXIT_CODE
    return error.exit_code if isinstance(error, AdaspaError) else RunError.exit_code


def started_by_torchrun() -> Place | None:
    """The place that the environment gives this process."""
    from adaspa_cli.distributed.place import place_of

    return place_of(os.environ)

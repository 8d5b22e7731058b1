"""A process that its launcher ends is silent, and one that has begun to say what is wrong finishes: at any moment."""

import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from signal import SIGTERM, raise_signal
from typing import Any

import pytest
import typer

from adaspa_cli.commands.guard import guard
from adaspa_cli.commands.together import Member, member
from adaspa_cli.console import Console
from adaspa_cli.distributed.failure import Ended
from adaspa_cli.distributed.place import Place
from adaspa_cli.errors import UsageError
from tests.processes import at_once

WRONG = UsageError("height must be a multiple of 16")
SAID = f"error: {WRONG.message}\n"


def _fail() -> None:
    raise WRONG


def _also(owner: Any, name: str) -> None:
    """Send this process SIGTERM whenever a function is called, before it does its work."""
    work = getattr(owner, name)

    def ended(*arguments: Any) -> Any:
        raise_signal(SIGTERM)
        return work(*arguments)

    setattr(owner, name, ended)


def _command(body: Callable[[], None], said: Path) -> None:
    """What a command is: exits with its code, or with 99 where anything else than that comes out."""
    code = 99
    sys.unraisablehook = sys.__unraisablehook__
    with said.open("w", buffering=1) as sys.stderr:
        try:
            console = Console()
            with guard(console), member(console, Place(0, 2, 0)):
                body()
            raise_signal(SIGTERM)
            code = 0
        except typer.Exit as exit_:
            code = exit_.exit_code
        finally:
            os._exit(code)


def _run(folder: Path, body: Callable[[], None]) -> tuple[int, str]:
    """Exit code of a command in a fork, and what it said."""
    (code,) = at_once(partial(_command, body, folder / "said"))
    return code, (folder / "said").read_text()


@pytest.mark.parametrize(("owner", "name"), [(threading.Timer, "start"), (Member, "patience")])
def test_a_process_ended_before_it_speaks_is_silent(owner: type, name: str, tmp_path: Path) -> None:
    def body() -> None:
        _also(owner, name)
        _fail()

    assert _run(tmp_path, body) == (2, "")


@pytest.mark.parametrize(("owner", "name"), [(Member, "speaks"), (Console, "error")])
def test_a_process_ended_once_it_speaks_says_its_error(owner: type, name: str, tmp_path: Path) -> None:
    def body() -> None:
        _also(owner, name)
        _fail()

    assert _run(tmp_path, body) == (2, SAID)


def test_a_process_ended_twice_is_silent(tmp_path: Path) -> None:
    def body() -> None:
        try:
            raise_signal(SIGTERM)
        finally:
            raise_signal(SIGTERM)

    assert _run(tmp_path, body) == (1, "")


def test_a_process_ended_after_its_work_has_done_it(tmp_path: Path) -> None:
    assert _run(tmp_path, lambda: None) == (0, "")


def test_an_end_that_a_library_swallows_is_silent(tmp_path: Path) -> None:
    class Resource:
        def __del__(self) -> None:
            raise_signal(SIGTERM)

    def body() -> None:
        Resource()
        raise RuntimeError("the resource is not there")

    assert _run(tmp_path, body) == (1, "")


def test_an_end_outside_the_member_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, guard(Console()):
        raise Ended
    assert caught.value.exit_code == 1
    assert capsys.readouterr().err == ""

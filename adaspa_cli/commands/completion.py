"""What Tab completes: values that are known without a run. Where none fits, the shell completes the name of a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, MutableMapping

_ASKED = "_ADASPA_COMPLETE"  # set by the script that --install-completion puts into the shell's configuration
_WORDS, _CURRENT = "COMP_WORDS", "COMP_CWORD"  # of bash: the words of the line, and the number of the one to complete
_WIDEST = "10000"  # columns


def among(values: Iterable[str]) -> Callable[[str], list[str]]:
    """An ``autocompletion`` of Typer: those of the values that begin with what is written."""
    known = tuple(values)

    def completed(incomplete: str) -> list[str]:
        return [value for value in known if value.startswith(incomplete)]

    return completed


def prepare_completion(environment: MutableMapping[str, str] = os.environ) -> None:
    """Fix what Typer makes of a completion request, if there is one: its help is wrapped, and a shell reads lines;
    and bash counts the = of --model=tiny as a word."""
    if _ASKED not in environment:
        return
    environment["COLUMNS"] = _WIDEST
    if _WORDS in environment and environment.get(_CURRENT, "").isdecimal():
        words, current = _without_equals(environment[_WORDS].split("\n"), int(environment[_CURRENT]))
        environment[_WORDS], environment[_CURRENT] = "\n".join(words), str(current)


def _without_equals(words: list[str], current: int) -> tuple[list[str], int]:
    """``--model = tiny`` as ``--model tiny``; an = that is to be completed gives way to an empty word."""
    kept = [word for number, word in enumerate(words) if word != "=" or number == current]
    current -= words[:current].count("=")
    return ["" if number == current and word == "=" else word for number, word in enumerate(kept)], current

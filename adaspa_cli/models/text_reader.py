"""How much of a prompt a text encoder reads, and where what it leaves out begins.

Pipelines cut a prompt that is too long, and say nothing. Where they cut is counted here with the pipeline's own
tokenizer, up to the limit that its call has.
"""

from __future__ import annotations

import inspect
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from adaspa_cli.errors import shortened

# A word, or a character of a script that writes words without spaces, so that a cut is found within them.
_PIECE = re.compile(r"[\u0e00-\u0eff\u2e80-\U0010ffff]|[^\s\u0e00-\u0eff\u2e80-\U0010ffff]{1,40}")
_MOST_PROMPTS = 3  # too long ones that are quoted


@dataclass(frozen=True)
class TextReader:
    """How much a text encoder of a pipeline reads.

    Attributes:
        reads: what, in words for people: ``tokens of a prompt``.
        limit: how many tokens of it.
        count: how many tokens of those the beginning of a text takes, to the end of a word.
        part: what it reads of a prompt.
    """

    reads: str
    limit: int
    count: Callable[[str], int]
    part: Callable[[str], str] = lambda prompt: prompt

    def cut(self, prompt: str) -> tuple[str, int] | None:
        """What is not read of a prompt, from the first word that is not read as a whole, and all tokens of the prompt;
        None where nothing is cut."""
        text = self.part(prompt)
        ends = [piece.end() for piece in _PIECE.finditer(text)]
        if not ends or (tokens := self.count(text[: ends[-1]])) <= self.limit:
            return None
        whole = bisect_right(ends, self.limit, key=lambda end: self.count(text[:end]))
        return text[ends[whole - 1] if whole else 0 :], tokens

    def unread(self, prompts: Iterable[str]) -> str | None:
        """In one sentence, where it stops reading prompts that are too long."""
        cuts = list(self._cuts(prompts))
        if not cuts:
            return None
        more = f"; {len(cuts) - _MOST_PROMPTS} more are too long" if len(cuts) > _MOST_PROMPTS else ""
        return f"reads {self.limit} {self.reads} and drops the rest: {'; '.join(cuts[:_MOST_PROMPTS])}{more}"

    def _cuts(self, prompts: Iterable[str]) -> Iterator[str]:
        for prompt in dict.fromkeys(prompts):
            found = self.cut(prompt)
            if found is not None:
                rest, tokens = found
                yield f"'{shortened(prompt, 40)}' ({tokens} tokens) from '{shortened(rest, 60)}' on"


def default_of(pipe: Any, name: str) -> Any:
    """The default of an argument of a pipeline's call, which runs leave as it is."""
    return inspect.signature(type(pipe).__call__).parameters[name].default

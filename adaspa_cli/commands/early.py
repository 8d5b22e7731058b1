"""What a command says of its settings before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaspa_cli.console import Console
from adaspa_cli.jobs.early import note_repeated

if TYPE_CHECKING:
    from adaspa_cli.commands.settings import Given
    from adaspa_cli.config import Resolved


def say_early(console: Console, given: Given, resolved: Resolved, prompts: Sequence[str]) -> None:
    """Say what the flags don't do, what the model will not understand, and what kind of run it is."""
    from adaspa_cli.config.architecture import random_weights_note
    from adaspa_cli.config.vocabulary import check_understood

    method = resolved.config.method
    idle = method.ignored(given.settings())
    for reason in dict.fromkeys(idle.values()):
        keys = [key for key in idle if idle[key] == reason]
        typed = [f"--{key.replace('_', '-')}" if key in given.flags else f"--set {key}" for key in keys]
        console.note(f"no effect {reason}: {', '.join(typed)}")
    note_repeated(console.note, "seed", given.seeds())
    for line in check_understood(resolved.config, prompts):
        console.note(line, wrap=True)
    note = random_weights_note(resolved.config.model)
    if note:
        console.note(note)

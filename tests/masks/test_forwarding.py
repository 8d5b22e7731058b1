"""A method in terms of another leaves nothing of the other out."""

from adaspa_cli.masks.forwarding import Forwarding
from adaspa_cli.masks.policy import MaskPolicy

OF_THE_REST = {"plan", "choose", "stage_of"}  # made of what the others say


def test_everything_that_a_method_may_say_is_forwarded() -> None:
    """What is forgotten reads as its default, silently: a search with other rows, or masks that nothing repairs."""
    assert {name for name in vars(MaskPolicy) if not name.startswith("_")} - OF_THE_REST <= vars(Forwarding).keys()

"""What a call does, apart from where its mask comes from."""

import contextlib
import itertools

import pytest

from adaspa_cli.masks.plan import (
    CHECK,
    DENSE,
    ESTIMATE,
    LOAD,
    MERGED,
    PLANS,
    SEARCH,
    SPARSE,
    Attention,
    CallPlan,
    MaskSource,
)


def test_the_plans_are_all_that_make_sense() -> None:
    made = set()
    for attention, mask in itertools.product(Attention, MaskSource):
        with contextlib.suppress(ValueError):
            made.add(CallPlan(attention, mask))
    assert made == set(PLANS)
    with pytest.raises(ValueError, match="sparse attention cannot have a mask by 'none'"):
        CallPlan(Attention.SPARSE)


def test_phases_are_those_of_reports() -> None:
    assert [plan.phase for plan in PLANS] == [
        "dense", "merged", "search", "cached search", "sparse", "estimate", "mask check", "loaded masks",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("plan", "gives"), [(DENSE, False), (MERGED, False), (SPARSE, False), (ESTIMATE, False), (SEARCH, True)]
)
def test_only_what_later_calls_reuse_is_given(plan: CallPlan, gives: bool) -> None:
    assert plan.gives_mask is gives
    assert CHECK.gives_mask
    assert LOAD.gives_mask

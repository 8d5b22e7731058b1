"""Sparsity by step: what is read, when it holds, and what is refused."""

import pytest
import yaml

from adaspa_cli.config.ramp import SparsityRamp
from adaspa_cli.errors import ConfigError

RAMP = "0:0.5,8%:0.7,20%:0.95"


def by_step(ramp: SparsityRamp, steps: int) -> list[float]:
    return [ramp.at(step, steps) for step in range(steps)]


@pytest.mark.parametrize("value", [0.95, "0.95", {0: 0.95}, "0:0.95"], ids=str)
def test_one_number_holds_for_the_whole_run(value: object) -> None:
    ramp = SparsityRamp.parse(value)
    assert by_step(ramp, 5) == [0.95] * 5
    assert ramp.constant
    assert ramp.changes(5) == ()
    assert str(ramp) == "0.95"


@pytest.mark.parametrize("value", [RAMP, yaml.safe_load("{0: 0.5, 8%: 0.7, 20%: 0.95}")], ids=["flag", "YAML"])
def test_a_ramp_in_shares_of_the_run(value: object) -> None:
    ramp = SparsityRamp.parse(value)
    assert by_step(ramp, 50) == [0.5] * 4 + [0.7] * 6 + [0.95] * 40
    assert by_step(ramp, 14) == [0.5] * 2 + [0.7] + [0.95] * 11
    assert by_step(ramp, 1) == [0.5]
    assert ramp.changes(50) == (4, 10)
    assert not ramp.constant


def test_a_ramp_in_steps() -> None:
    ramp = SparsityRamp.parse({0: 0, 2: 0.5, 9: 0.9})
    assert by_step(ramp, 4) == [0.0, 0.0, 0.5, 0.5]
    assert ramp.changes(4) == (2,)


def test_steps_and_shares_together_hold_from_when_they_begin() -> None:
    ramp = SparsityRamp.parse({50: 0.9, "0%": 0.3, 3: 0.5})
    assert by_step(ramp, 5) == [0.3, 0.3, 0.3, 0.5, 0.5]


def test_a_share_is_exact() -> None:
    ramp = SparsityRamp.parse({0: 0.1, "7%": 0.9})
    assert by_step(ramp, 100)[6:8] == [0.1, 0.9]
    assert SparsityRamp.parse({0: 0.1, "14.3%": 0.9}).changes(1000) == (143,)
    assert SparsityRamp.parse({0: 0.1, "100%": 0.9}).changes(7) == ()


def test_of_two_that_fall_together_the_last_holds() -> None:
    assert by_step(SparsityRamp.parse("0:0.5,8%:0.7,20%:0.95"), 4) == [0.5, 0.95, 0.95, 0.95]


def test_equal_values_are_no_change() -> None:
    assert SparsityRamp.parse("0:0.5,3:0.5,4:0.6").changes(10) == (4,)


@pytest.mark.parametrize("value", [RAMP, "0.8", "0:0.5,3:0.75", "0%:0.1,12.5%:0.9"])
def test_the_text_reads_back(value: str) -> None:
    assert str(SparsityRamp.parse(value)) == value
    assert SparsityRamp.parse(str(SparsityRamp.parse(value))) == SparsityRamp.parse(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.0, r"must lie in \[0, 1\), got 1.0"),
        (-0.1, r"must lie in \[0, 1\)"),
        (float("nan"), r"must lie in \[0, 1\)"),
        ("many", "must be a number, got 'many'"),
        (True, "must be a number or sparsities by step"),
        (None, "must be a number or sparsities by step"),
        ([], "must be a number or sparsities by step"),
        ({}, "must be a number or sparsities by step"),
        ({0: True}, "must be a number, got True"),
        ({0: "0.5", 2: "x"}, "must be a number, got 'x'"),
        ("0:0.5,7", "must be a number or sparsities by step"),
        ({"-1": 0.5}, "not at '-1'"),
        ({"101%": 0.5, 0: 0.1}, "not at '101%'"),
        ({"half": 0.5}, "not at 'half'"),
        ({1: 0.5}, "no sparsity begins at step 0"),
        ({"1%": 0.5}, "no sparsity begins at step 0"),
        ("0:0.5,2:0.7,2:0.8", "two sparsities begin at 2"),
    ],
)
def test_what_is_no_ramp_is_refused_in_one_line(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        SparsityRamp.parse(value, "sparsity")
    assert "\n" not in str(refused.value)

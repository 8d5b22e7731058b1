"""The table of flags, and the commands that are made from it."""

import inspect

import pytest
from typer.testing import CliRunner

from adaspa_cli.app import app
from adaspa_cli.commands import options
from adaspa_cli.commands.generate import generate
from adaspa_cli.commands.options import Flag
from adaspa_cli.config.flat import keys_of
from adaspa_cli.config.schema import GenerateConfig

TABLE = [value for value in vars(options).values() if isinstance(value, Flag)]


@pytest.mark.parametrize("flag", TABLE, ids=lambda flag: flag.key)
def test_a_flag_is_a_setting_of_a_run(flag: Flag) -> None:
    assert flag.key in {*keys_of(GenerateConfig), "config", "set"}
    assert flag.text.endswith((".", "float32", "reference"))


def test_generate_takes_every_flag_of_the_table() -> None:
    assert {flag.key for flag in options.GENERATE} == {flag.key for flag in TABLE}


def test_a_flag_reads_the_same_in_all_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a command says what it means there."""
    monkeypatch.setenv("COLUMNS", "900")
    for command in ("generate", "search-masks", "visualize"):
        shown = CliRunner().invoke(app, [command, "--help"]).stdout
        for flag in (options.PROMPTS, options.MODEL, options.CONFIG, options.DEVICE):
            assert flag.text in shown


def test_a_flag_that_is_not_given_sets_nothing() -> None:
    """Presets decide then: a default here would win over them."""
    parameters = inspect.signature(generate).parameters
    assert all(parameters[flag.key].default is None for flag in options.GENERATE)

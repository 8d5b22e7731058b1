"""Fixtures of the tests of commands."""

from collections.abc import Iterator

import pytest

from tests.light import Light, light_processes


@pytest.fixture(scope="session")
def light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Light]:
    """Runs ``adaspa`` in processes that have nothing heavy loaded."""
    with light_processes(tmp_path_factory.mktemp("light")) as processes:
        yield processes

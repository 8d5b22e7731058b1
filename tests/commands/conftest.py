"""Fixtures of the tests of commands."""

from collections.abc import Iterator

import pytest

from tests.forked import ROOT, Forks, forks_of


@pytest.fixture(scope="session")
def light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Runs ``adaspa`` in processes that have nothing heavy loaded."""
    with forks_of(str(ROOT / "tests" / "light.py"), tmp_path_factory.mktemp("light")) as forks:
        yield forks

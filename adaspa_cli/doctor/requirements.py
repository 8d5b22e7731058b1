"""What adaspa needs, what its extras need, by its own metadata, and which of it is installed."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterator

from packaging.requirements import Requirement

from adaspa_cli.config.presets import presets_root
from adaspa_cli.doctor.facts import Extra, Library

NAME = "adaspa"
_FOR_WORK_ON_IT = ("dev", "docs")  # extras that no user misses


def libraries() -> tuple[Library, ...]:
    """What adaspa needs."""
    return tuple(installed(requirement) for extra, requirement in _declared() if extra is None)


def extras() -> tuple[Extra, ...]:
    """What its extras need."""
    found: dict[str, list[Library]] = {}
    for extra, requirement in _declared():
        if extra is not None and extra not in _FOR_WORK_ON_IT:
            found.setdefault(extra, []).append(installed(requirement))
    return tuple(Extra(name, tuple(held)) for name, held in found.items())


def installed(requirement: Requirement) -> Library:
    """What is there of a requirement."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Library(requirement.name, None)
    fits = requirement.specifier.contains(version, prereleases=True)
    return Library(requirement.name, version, None if fits else str(requirement.specifier))


def _declared() -> Iterator[tuple[str | None, Requirement]]:
    """Requirements that hold on this machine, each with its extra: of the checkout that runs, else of the package."""
    project = presets_root().parent / "pyproject.toml"
    if project.is_file():
        content = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        extras = content["optional-dependencies"]
        texts = [(None, text) for text in content["dependencies"]]
        texts += [(extra, text) for extra, held in extras.items() for text in held]
        for extra, text in texts:
            requirement = Requirement(text)
            if requirement.name != NAME and (requirement.marker is None or requirement.marker.evaluate()):
                yield extra, requirement
        return
    names = importlib.metadata.metadata(NAME).get_all("Provides-Extra") or []
    for requirement in map(Requirement, importlib.metadata.requires(NAME) or ()):
        if requirement.name == NAME:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield None, requirement
            continue
        yield from ((name, requirement) for name in names if requirement.marker.evaluate({"extra": name}))

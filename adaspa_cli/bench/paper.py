"""The figures that the AdaSpa paper reports (arXiv 2502.21079), for rows that run what it ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import yaml

from adaspa_cli.config.load import presets_root
from adaspa_cli.errors import ConfigError, nearest


def load_tables(names: Sequence[str]) -> list[dict[str, Any]]:
    """Read tables of ``configs/paper``.

    Raises:
        ConfigError: there is none of a name.
    """
    folder = presets_root() / "paper"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown table of the paper '{name}'{nearest(name, known)}", hint=f"one of {known}")
    return [yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")) for name in names]


# What may differ from the paper's setting without making it another experiment.
_HARMLESS = {
    *("device", "dtype", "attention_backend", "offload", "vae_tiling", "vae_framewise", "fps", "weights"),
    "search_steps_for",  # where it scales nothing
    "compile",  # the same but for rounding
    *("random_weights", "steps_per_phase"),  # times alone are shown then
}
_TIMES = ("latency", "speed_up")
_PLACE = ("table", "machine")


def paper_figures(
    settings: Mapping[str, Any], chosen: Set[str], tables: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The paper's figures for a run with these settings, with where they stand and on which machine.

    Args:
        settings: of the run, all of them.
        chosen: the keys that are set for this run, and not by its method or model.

    Returns:
        None unless the model, its size, the steps, the method and all that was chosen are the paper's. With random
        weights, which have no quality, only its times.
    """
    if "search_steps_for" in chosen and settings["search_steps_for"] not in (None, settings["steps"]):
        return None
    for table in tables:
        for row in table["rows"]:
            wanted = {**table["setting"], **row["setting"]}
            same = all(settings.get(key) == value for key, value in wanted.items())
            if same and chosen <= {*wanted, *_HARMLESS}:
                figures = {"table": table["title"], "machine": table["machine"], **row["figures"]}
                return _only(figures, _TIMES) if settings.get("random_weights") else figures
    return None


def without_times(figures: Mapping[str, Any]) -> dict[str, Any] | None:
    """The paper's figures of quality; None if there are none."""
    return _only(figures, [key for key in figures if key not in _TIMES])


def _only(figures: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any] | None:
    found = {key: value for key, value in figures.items() if key in keys or key in _PLACE}
    return found if set(found) > set(_PLACE) else None

"""The figures of the AdaSpa paper (arXiv 2502.21079), for rows with the same settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import Any

import yaml

from adaspa_cli.bench.schema import PaperFigures
from adaspa_cli.config.presets import presets_root
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


def paper_figures(
    settings: Mapping[str, Any], chosen: Set[str], tables: Sequence[Mapping[str, Any]]
) -> PaperFigures | None:
    """The paper's figures for a run with these settings, with their place in the paper and the machine.

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
                figures = PaperFigures(table=table["title"], machine=table["machine"], **row["figures"])
                return _times_alone(figures) if settings.get("random_weights") else figures
    return None


def without_times(figures: PaperFigures) -> PaperFigures | None:
    """The paper's figures of quality; None if there are none."""
    return _unless_empty(dataclasses.replace(figures, latency=None, speed_up=None))


def _times_alone(figures: PaperFigures) -> PaperFigures | None:
    return _unless_empty(dataclasses.replace(figures, psnr=None, ssim=None, lpips=None, vbench=None))


def _unless_empty(figures: PaperFigures) -> PaperFigures | None:
    return None if figures == PaperFigures(table=figures.table, machine=figures.machine) else figures

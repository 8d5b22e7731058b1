"""Which videos a run makes, where each goes, and which exist already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adaspa_cli.config import Resolved
from adaspa_cli.files.folders import check_folder
from adaspa_cli.jobs.fingerprint import video_fingerprint
from adaspa_cli.jobs.places import find_place, report_path, video_name
from adaspa_cli.models.loading import choose_device, other_names
from adaspa_cli.report.compare import Compared, load_compared
from adaspa_cli.report.schema import read_report


@dataclass(frozen=True)
class Job:
    """One video to make.

    Attributes:
        place: where the video goes, or is; its other files lie beside it.
        complete: whether it is there.
        fingerprint: of everything that decides what it looks like; of a complete one, with its device as it was named.
        compared: the run that its page shows beside it.
    """

    prompt: str
    seed: int
    place: Path
    complete: bool
    fingerprint: str
    compared: Compared | None = None


def plan(resolved: Resolved, prompts: Sequence[str]) -> list[Job]:
    """List the videos of a run and find a free place for each; writes nothing.

    Raises:
        ConfigError: a report to compare with does not fit.
        OutputError: the output folder cannot be written.
        MaskFileError: the mask file is corrupt or does not fit the settings.
    """
    config = resolved.config
    folder = check_folder(config.output.out)
    wanted = list(dict.fromkeys((prompt, seed) for prompt in prompts for seed in config.sampling.seed))
    compared = load_compared(config.output.compare_with, set(wanted), config)
    jobs: list[Job] = []
    taken: set[Path] = set()
    for prompt, seed in wanted:
        fingerprint = video_fingerprint(resolved, prompt, seed)
        name, resume = video_name(prompt, seed), config.output.resume
        place, complete = find_place(folder, name, fingerprint, resume=resume, taken=taken)
        for device in () if complete or not resume else other_names(config.model.device):
            other = video_fingerprint(resolved, prompt, seed, device)
            found, there = find_place(folder, name, other, resume=True, taken=taken)
            if there and _device_of(found) == choose_device(device).type:
                place, complete, fingerprint = found, True, other
                break
        taken.add(place)
        jobs.append(Job(prompt, seed, place, complete, fingerprint, compared.get((prompt, seed))))
    return jobs


def _device_of(video: Path) -> str:
    """``cpu`` or ``cuda``, as the report of a complete video has it."""
    return read_report(report_path(video)).machine.device.partition(":")[0]

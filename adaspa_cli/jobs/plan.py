"""Which videos a run makes, where each goes, and which exist already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adaspa_cli.config import Resolved
from adaspa_cli.files.folders import check_folder
from adaspa_cli.jobs.fingerprint import video_fingerprint
from adaspa_cli.jobs.places import find_place, video_name
from adaspa_cli.report.compare import Compared, load_compared


@dataclass(frozen=True)
class Job:
    """One video to make.

    Attributes:
        place: where the video goes, or is; its other files lie beside it.
        complete: whether it is there.
        fingerprint: of everything that decides what it looks like.
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
        place, complete = find_place(
            folder,
            video_name(prompt, seed),
            fingerprint,
            resume=config.output.resume,
            taken=taken,
        )
        taken.add(place)
        jobs.append(Job(prompt, seed, place, complete, fingerprint, compared.get((prompt, seed))))
    return jobs

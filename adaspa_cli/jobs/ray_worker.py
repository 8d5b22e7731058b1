"""A Ray worker: loads a pipeline once, and makes the requested videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from adaspa_cli.config import Resolved
from adaspa_cli.errors import AdaspaError, RunError
from adaspa_cli.jobs.follow import Silent
from adaspa_cli.jobs.generate import claim, make
from adaspa_cli.jobs.places import claim_path, page_path, report_path
from adaspa_cli.jobs.plan import Job
from adaspa_cli.models.fp8_linear import check_fp8
from adaspa_cli.models.loading import choose_device, load_pipeline
from adaspa_cli.models.registry import check_read
from adaspa_cli.report.schema import Report
from adaspa_cli.sampling.memory import memory_errors
from adaspa_cli.sampling.run import Session, session
from adaspa_cli.version import __version__


@dataclass(frozen=True)
class Sent:
    """A video as a worker sends it.

    Attributes:
        report: of the video. The driver makes its page, which may show another video beside it.
        files: the video, and whatever else there is, by name.
        notes: what the user should know of it, a line each.
    """

    report: Report
    files: Mapping[str, bytes]
    notes: Sequence[str] = ()


class Worker:
    """The actor. Errors that tell the user something are returned: Ray would wrap them."""

    def __init__(self, resolved: Resolved, version: str = __version__) -> None:
        self._resolved, self._version = resolved, version
        self._stack = ExitStack()
        self._session: Session | None = None

    def make(self, job: Job, name: str) -> Sent | AdaspaError:
        """Make a video under a name.

        Args:
            name: of the video's file.
        """
        try:
            with memory_errors(self._resolved.config):
                return self._sent(job, name)
        except AdaspaError as error:
            return error
        except Exception as error:
            return RunError(f"a worker failed: {type(error).__name__}: {' '.join(str(error).split())}")

    def _sent(self, job: Job, name: str) -> Sent:
        with TemporaryDirectory(prefix="adaspa-") as folder:
            here = dataclasses.replace(job, place=Path(folder) / name, compared=None)
            claimed = claim(here, resume=False)
            assert claimed is not None
            with claimed:
                at_work, notes = self._at_work(), list[str]()
                check_read(at_work.pipe, self._resolved.config, [job.prompt], notes.append)
                made = make(at_work, here, claimed)
                extra = (page_path(made.place), report_path(made.place), claim_path(made.place))
                files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path not in extra}
            return Sent(made.report, files, notes)

    def _at_work(self) -> Session:
        """The session of all videos of this worker; the first one loads the pipeline."""
        if self._session is None:
            if self._version != __version__:
                raise RunError(f"a worker has adaspa {__version__}, and the driver {self._version}")
            config = self._resolved.config
            if config.method.linear == "fp8":
                check_fp8(choose_device(config.model.device))
            pipe = load_pipeline(config.model, decode=config.decodes, linear=config.method.linear)
            self._session = self._stack.enter_context(session(pipe, self._resolved, Silent()))
        return self._session

"""The folder in which a search over many prompts grows: block sums added up, then masks, then one file.

Everything there is written under a temporary name and renamed, and every sum knows how many videos are in it. So a
search that was interrupted anywhere, also in the middle of a video, continues with that video and adds nothing twice.

Shapes: H heads, R query and C key blocks without text.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.errors import OutputError, RunError
from adaspa_cli.files.whole import cannot_write, whole_file, write_json
from adaspa_cli.maskfiles import Description, write_mask_file, write_part
from adaspa_cli.maskfiles.description import Place

STATE = "state.json"


def work_folder(out: Path) -> Path:
    """Where the search of a mask file grows."""
    return out.with_name(f"{out.name}.search")


def videos_done(out: Path, share: str) -> int:
    """How many videos a share has searched; 0 where it has not begun."""
    try:
        return int(json.loads((work_folder(out) / share / STATE).read_text(encoding="utf-8"))["done"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0


class MaskParts:
    """One work folder.

    Attributes:
        folder: where it is.
        done: videos whose block sums are all in.
        layout: of the first video; None before it.
        branches: guidance branches that were met.
    """

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool,
        share: str = "",
        former: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the folder beside ``out``, or with ``resume`` continue the existing one.

        Args:
            share: of one of several processes, a folder within that one.
            former: the same settings as an older version noted them.

        Raises:
            OutputError: it cannot be written, holds sums or masks without ``resume``, or belongs to another search.
        """
        self._root = work_folder(out)
        self.folder = self._root / share
        self.done = 0
        self.layout: TokenLayout | None = None
        self.branches: list[str] = []
        self._settings, self._former = (json.loads(json.dumps(known)) for known in (settings, former))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(f"to {self.folder}", error, hint="choose another --out") from error
        if resume and (self.folder / STATE).exists():
            self._read_state()
        elif any(path.name != STATE for path in self.folder.iterdir()):
            shared = any(path.is_dir() for path in self.folder.iterdir())
            way = "its processes continue with --shard" if shared else "--resume continues it"
            raise OutputError(
                f"an unfinished search is in {self.folder}",
                hint=f"{way}; remove the folder, or choose another --out, to start over",
            )
        else:
            self._write_state()

    def _read_state(self) -> None:
        try:
            state = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
            then, self.done, self.branches = dict(state["settings"]), int(state["done"]), list(state["branches"])
            self.layout = TokenLayout(**state["layout"]) if state["layout"] else None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise OutputError(f"cannot read {self.folder / STATE}", hint="remove the folder, to start over") from error
        now = self._former if then == self._former else self._settings
        differing = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        if differing:
            listed = ", ".join(f"{key} {then.get(key)!r} then, {now.get(key)!r} now" for key in differing)
            raise OutputError(
                f"the unfinished search in {self.folder} had other settings: {listed[:500]}",
                hint="remove the folder, or choose another --out, to start over",
            )

    def _write_state(self) -> None:
        layout = None if self.layout is None else vars(self.layout)
        state = {"settings": self._settings, "done": self.done, "branches": self.branches, "layout": layout}
        write_json(self.folder / STATE, state, replace=True)

    def video_done(self, layout: TokenLayout, branches: Sequence[str]) -> None:
        """Note that a video's block sums are all in."""
        self.done += 1
        self.layout, self.branches = self.layout or layout, list(branches)
        self._write_state()

    def add(self, place: Place, number: int, video: Tensor, text: Tensor) -> None:
        """Add the block sums of video ``number`` (from 0): video part [H, R, C], mass with text [H].

        Holds the sum so far and the new one, on the device of ``video``.

        Raises:
            OutputError: the disk is full.
        """
        stored = self._stored(place)
        if stored > number:
            return  # added before an interruption
        video, text = self.sum(place, number, video, text)
        tensors = {"video": video.cpu().contiguous(), "text": text.cpu().contiguous()}
        with self._writing(self._sums(place)) as partial:
            save_file(tensors, partial, {"videos": str(number + 1)})

    def sum(self, place: Place, number: int, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of videos 0 to ``number`` - 1 and of the given one.

        Raises:
            RunError: the folder holds another number of them.
        """
        if number == 0:
            return video, text
        if self._stored(place) != number:
            raise RunError(f"{self._sums(place)} does not hold {number} videos", hint=f"remove {self.folder}")
        with safe_open(self._sums(place), "pt") as file:
            return (
                video + file.get_tensor("video").to(video.device),
                text + file.get_tensor("text").to(text.device),
            )

    def stored(self, place: Place, device: torch.device) -> tuple[Tensor, Tensor]:
        """The sums of all videos; raises RunError if they are of another number of them."""
        if self._stored(place) != self.done:
            raise RunError(f"{self._sums(place)} does not hold {self.done} videos", hint=f"remove {self.folder}")
        with safe_open(self._sums(place), "pt") as file:
            return file.get_tensor("video").to(device), file.get_tensor("text").to(device)

    def _stored(self, place: Place) -> int:
        """How many videos are in the sums of a place."""
        if not self._sums(place).exists():
            return 0
        try:
            with safe_open(self._sums(place), "pt") as file:
                return int(file.metadata()["videos"])
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise RunError(f"cannot read {self._sums(place)}", hint=f"remove {self.folder}") from error

    def has_mask(self, place: Place) -> bool:
        """Whether the final mask of a place is there."""
        return self._mask(place).exists()

    def write_mask(self, place: Place, density: Tensor, recall: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Write the final mask of a place; its sums are no longer needed."""
        on_cpu = {kind: tensor.cpu().contiguous() for kind, tensor in tensors.items()}
        with self._writing(self._mask(place)) as partial:
            write_part(partial, place, density.tolist(), recall.tolist(), on_cpu)
        self._sums(place).unlink(missing_ok=True)

    def join(self, out: Path, description: Description) -> None:
        """Make the mask file of all masks, and remove the folder.

        Raises:
            OutputError: it cannot be written, or another file took its name meanwhile.
        """
        try:
            with whole_file(out) as partial:
                parts = {place: self._mask(place) for place in description.places()}
                write_mask_file(partial, description, parts)
        except OSError as error:
            raise cannot_write(out, error, hint="the search itself is kept: --resume") from error
        shutil.rmtree(self._root, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[Path]:
        """A temporary name, which becomes ``path``; raises OutputError where the disk does not take it."""
        try:
            with whole_file(path, replace=True) as partial:
                yield partial
        except (OSError, SafetensorError) as error:
            raise cannot_write(path, error, hint="continue with --resume") from error

    def _sums(self, place: Place) -> Path:
        return self.folder / f"{'.'.join(map(str, place))}.sums"

    def _mask(self, place: Place) -> Path:
        return self.folder / f"{'.'.join(map(str, place))}.mask"

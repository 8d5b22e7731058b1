"""Reading a mask file: the header at once, the masks one at a time.

Shapes: H heads, R query and C key blocks without text.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adaspa_cli.attention.mask_conversion import unpack_words
from adaspa_cli.errors import MaskFileError
from adaspa_cli.maskfiles.description import Entry, Place
from adaspa_cli.maskfiles.header import Described, tensor_name
from adaspa_cli.maskfiles.ranking import Ranking, choose_counts, ranked_blocks
from adaspa_cli.maskfiles.writer import digest


class MaskFile(Described):
    """A mask file whose header is whole. Tensors are read, and checked, on demand.

    Memory is that of the tensors of one mask, whatever the size of the file.
    """

    def entry(self, place: Place) -> Entry:
        """Density, recall and digests of one mask.

        Raises:
            KeyError: the file has no such layer, branch or step.
        """
        facts = self.description
        layer, branch, step = place
        if not 0 <= layer < facts.layers or branch not in facts.branches or step not in facts.steps_of(layer):
            raise KeyError(place)
        return next(entry for entry in facts.entries if entry.place == place)

    def read(self, place: Place, kind: str) -> Tensor:
        """Read one tensor, and check it against its digest.

        Raises:
            MaskFileError: it cannot be read, or is corrupt.
        """
        expected = self.entry(place).digests[kind]
        try:
            with safe_open(self.path, "pt") as file:
                tensor: Tensor = file.get_tensor(tensor_name(place, kind))
        except (OSError, SafetensorError) as error:
            raise MaskFileError(f"cannot read masks from {self.path}: {error}") from error
        if digest(tensor) != expected:
            layer, branch, step = place
            raise MaskFileError(
                f"{self.path} is corrupt: the checksum does not fit the {kind} of layer {layer}, branch {branch}, "
                f"step {step}",
                hint="search the masks again with adaspa search-masks",
            )
        return tensor

    def verify(self) -> Iterator[Place]:
        """Check the tensors, mask by mask.

        Yields:
            The place of each mask that is whole.

        Raises:
            MaskFileError: at the first one that is not.
        """
        for place in self.description.places():
            for kind in self.description.kinds():
                self.read(place, kind)
            yield place

    def ranking(self, place: Place) -> Ranking:
        """The order of the heaviest blocks of a mask, of a file that keeps it.

        Raises:
            MaskFileError: corrupt, or it names a block that there is not.
        """
        order = self.read(place, "ranking")
        if int(order.min()) < 0 or int(order.max()) >= self.description.video_blocks:
            raise MaskFileError(f"{self.path} is corrupt: the ranking of {place} names blocks that there are not")
        return Ranking(order, self.read(place, "recall_by_rank"))

    def video_mask(self, place: Place) -> Tensor:
        """Bool [H, R, C]: the blocks without text that the mask keeps at the sparsity of the file."""
        facts = self.description
        if facts.ranked is None:
            return unpack_words(self.read(place, "bits"), facts.video_blocks)
        ranking = self.ranking(place)
        counts = choose_counts(ranking, facts.method.sparsity, facts.video_blocks, facts.method.head_adaptive)
        return ranked_blocks(ranking.order, counts, facts.video_blocks)

    def sums(self, place: Place) -> tuple[Tensor, Tensor]:
        """Averaged block sums float32 [H, R, C] of a file that keeps them, and the mass [H] of the blocks with text."""
        return self.read(place, "sums").to(torch.float32), self.read(place, "text")

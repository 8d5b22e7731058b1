"""One model family: what a run needs to know of it, in addition to :mod:`adaspa_cli.config.families`.

To add a family, write

* an entry in :data:`adaspa_cli.config.families.FAMILIES`, with the facts that need no torch;
* a module that the entry names. It exports ``FAMILY``, an instance of a subclass of :class:`Family`, and has an
  attention processor and a subclass of :class:`~adaspa_cli.models.attachment.Attachment`, which reads the rows of the
  batch off the inputs of a forward pass. ``wan.py`` is the simplest;
* a preset in ``configs/models``.

No other module names a family. How the models of diffusers 0.42 differ, and where the difference goes:

* **Wan's attention**, ``WanAttention``, is not an ``Attention``: it calls processors by position, with unfiltered
  keyword arguments. Give the processor exactly the original's parameters. Its query and key norms are over all heads
  at once: call them before the heads are split, and :func:`~adaspa_cli.models.qk.prepare` without a norm for the
  rotation.
* **Separate attention for video and text** (Wan, LTX): replace only the video's self-attention. Its layout has
  ``text_tokens=0``, and cross-attention is left alone.
* **Blocks that return only the video's tokens**: override :meth:`Family.block_input`, :meth:`Family.block_output` and
  :meth:`Family.joined`.
* **Guidance in two passes** announces its branches by ``cache_context``, which every attachment follows; names other
  than ``cond`` and ``uncond`` go to :attr:`Family.branch_names`. Guidance as one batch is the attachment's task
  (CogVideoX).
* **Linear layers** by other paths, or another activation between them: :attr:`Family.linears` says what ``--linear
  fp8`` replaces, and ``linear_weights`` of the entry counts their weights. Without them that is refused.
* **Several processes for one video** (``--gpus``), and the Hilbert order of tokens: :meth:`Family.ends` names the
  module that gives the blocks their video tokens, the one that takes them after the last block, and the one that
  makes the rotary tables. Inputs with one entry per token, such as CogVideoX's tables or a timestep [B, N], are cut
  by the attachment in ``rearrange_inputs``, with :meth:`Rearrangement.rotary` or :meth:`Rearrangement.tokens`.
  Layouts in :meth:`Attachment.describe` always describe whole sequences. Inside a block, count tokens by the shapes
  of the tensors, which hold only the tokens of this process.
* **Two transformers**, each for a part of the steps (Wan 2.2): name both in the entry. Layers of the second continue
  the numbering of the first, and :meth:`Family.stages` gives the step at which it takes over: there masks are
  searched again, and those of the first are freed.

``tests/models/every_family.py`` has an entry for each family: one test suite serves them all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from adaspa_cli.config.families import FamilyFacts, Grid
from adaspa_cli.config.schema import SamplingConfig
from adaspa_cli.config.size_rule import SizeRule
from adaspa_cli.errors import RunError
from adaspa_cli.models.forward import Forward
from adaspa_cli.models.linears import Linears
from adaspa_cli.models.reordering import Ends
from adaspa_cli.models.text_reader import TextReader

Processor = Callable[..., Any]
Encode = Callable[..., tuple[Any, ...]]


@dataclass(frozen=True)
class Classes:
    """Classes of diffusers that a pipeline with random weights is built from."""

    pipeline: Any
    transformer: Any
    vae: Any


@dataclass(frozen=True)
class Shape:
    """Attention of a model: heads, their dimension, and the dtype that it computes in."""

    heads: int
    head_dim: int
    dtype: torch.dtype


class Family(ABC):
    """What differs between model families. Instances have no state.

    Attributes:
        facts: what is known without torch.
        attention: attribute of a block that is its attention module.
        attachment: subclass of :class:`~adaspa_cli.models.attachment.Attachment`.
        linears: of the blocks, those that may multiply in FP8.
        branch_names: what ``cache_context`` calls the guidance branches, where not ``cond`` and ``uncond``.
        batch_inputs: arguments of a transformer whose first dimension is the batch, which ``--cfg-parallel`` cuts where
            both guidance branches are one batch.
        absent: parts that a pipeline with random weights does without.
    """

    facts: FamilyFacts
    attention: ClassVar[str]
    attachment: ClassVar[type[Any]]
    linears: ClassVar[Linears] = Linears()
    branch_names: ClassVar[Mapping[str, str]] = {}
    batch_inputs: ClassVar[tuple[str, ...]] = ("hidden_states", "encoder_hidden_states", "timestep")
    absent: ClassVar[tuple[str, ...]]

    @abstractmethod
    def blocks(self, transformer: Any) -> list[Any]:
        """The blocks of a transformer in the order in which they run."""

    @abstractmethod
    def processor(self, layer: int, forward: Forward) -> Processor:
        """The replacement of a layer's attention processor."""

    def ends(self, transformer: Any) -> Ends:  # noqa: ARG002
        """Where video tokens enter and leave the blocks of a transformer.

        Raises:
            RunError: the family's tokens have only one order, and can't be split.
        """
        raise RunError(f"the tokens of {self.facts.pipeline} can't be reordered or split")

    # --- blocks: what a step cache keeps and adds

    def block_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The tokens among a block's arguments that it changes and returns: video [B, N, C], then text [B, T, C]."""
        if "hidden_states" in kwargs:
            return kwargs["hidden_states"], kwargs["encoder_hidden_states"]
        return args[0], args[1]

    def block_output(self, output: Any) -> tuple[Tensor, ...]:
        """The same tokens in what a block returns."""
        video, text = output
        return video, text

    def joined(self, tokens: tuple[Tensor, ...]) -> Any:
        """What a block returns that made these tokens."""
        return tokens

    # --- pipelines with weights, and with random ones

    def parts(self, location: str, *, local_files_only: bool) -> dict[str, Any]:  # noqa: ARG002  most have none
        """Parts of the pipeline at a folder or hub id that diffusers would not load rightly."""
        return {}

    @abstractmethod
    def classes(self) -> Classes:
        """Import and return the classes of diffusers; takes seconds."""

    @abstractmethod
    def encoder(self, pipe: Any) -> Encode:
        """The replacement of ``encode_prompt`` in a pipeline without text encoders."""

    def stand_ins(self, pipe: Any) -> dict[str, Callable[..., Any]]:
        """Replacements of methods whose parts a pipeline lacks, by name."""
        return {"encode_prompt": self.encoder(pipe)}

    def made_parts(self) -> dict[str, Any]:
        """Parts of a pipeline with random weights that have no weights, besides the scheduler."""
        return {}

    def readers(self, pipe: Any) -> tuple[TextReader, ...]:  # noqa: ARG002
        """The text encoders of a pipeline that has them, as far as it matters what they don't read of a prompt."""
        return ()

    @contextmanager
    def set_up(self, pipe: Any, sampling: SamplingConfig) -> Iterator[None]:  # noqa: ARG002  most take arguments
        """Within it the pipeline is set up for calls, in ways other than by the call's arguments."""
        yield

    # --- the same for all

    def transformers(self, pipe: Any) -> list[Any]:
        """The transformers of a pipeline that are there, in the order of the layers' numbers."""
        found = (getattr(pipe, name, None) for name in self.facts.transformers)
        return [transformer for transformer in found if transformer is not None]

    def stages(self, pipe: Any, steps: int) -> tuple[int, ...]:  # noqa: ARG002
        """The first denoising step, of ``steps``, of each transformer after the first."""
        return ()

    def shape(self, pipe: Any) -> Shape:
        """Heads and dtype; those of a second transformer are the same."""
        transformer = self.transformers(pipe)[0]
        config = transformer.config
        return Shape(int(config.num_attention_heads), int(config.attention_head_dim), transformer.dtype)

    def size_rule(self, pipe: Any) -> SizeRule:
        """The sizes of video that a pipeline makes."""
        return self.facts.size_rule(*self._configs(pipe))

    def video_grid(self, pipe: Any, sampling: SamplingConfig) -> Grid:
        """The token grid of a video."""
        return self.facts.video_grid(*self._configs(pipe), sampling)

    def _configs(self, pipe: Any) -> tuple[Any, Any]:
        """The configurations of the first transformer, and of the VAE: empty where there is none."""
        return self.transformers(pipe)[0].config, {} if pipe.vae is None else pipe.vae.config

"""Wan 2.1 and 2.2: video attends to itself, and apart from that to the text.

Only the self-attention is replaced: its tokens are only the video's, frame by frame, without padding. Wan 2.2 A14B has
two transformers, the first for high-noise steps, the second for low-noise steps.

Shapes: B batch, N video tokens, T text tokens, C channels, H heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.config.families import facts_of
from adaspa_cli.models.attachment import Attachment
from adaspa_cli.models.compiled import eager
from adaspa_cli.models.family import Classes, Encode, Family
from adaspa_cli.models.forward import Forward, Row, join
from adaspa_cli.models.linears import Gelu, Linears
from adaspa_cli.models.qk import Rotation, prepare
from adaspa_cli.models.random_text import text_noise, text_tokens
from adaspa_cli.models.reordering import Ends, Rearrangement
from adaspa_cli.models.text_reader import TextReader, default_of
from adaspa_cli.models.tokenizer import tokenizer_as_written


class WanProcessor:
    """Self-attention of one block. Norms of queries and keys are over all heads at once."""

    def __init__(self, layer: int, forward: Forward) -> None:
        self._layer, self._forward = layer, forward

    @eager  # nothing in here is the compiler's business: models/compiled.py says why
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,  # noqa: ARG002  called by position; there are none
        attention_mask: Tensor | None = None,  # noqa: ARG002
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """hidden_states [B, N, C] and tables [1, N, 1, D] to the attention output [B, N, C]."""
        rotation = None
        if rotary_emb is not None:
            cosines, sines = (table[0, :, 0] for table in rotary_emb)
            rotation = Rotation.of((cosines, sines), hidden_states.device)
        projected = (
            attn.norm_q(attn.to_q(hidden_states)),
            attn.norm_k(attn.to_k(hidden_states)),
            attn.to_v(hidden_states),
        )
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in projected)
        prepare(None, q, rotation, out=q)
        prepare(None, k, rotation, out=k)
        out = join(self._forward.attend_rows(self._layer, q, k, v))
        return attn.to_out[1](attn.to_out[0](out))  # type: ignore[no-any-return]


class WanAttachment(Attachment):
    """Processors on the self-attention of all blocks; cross-attention stays as it is."""

    def describe(self, config: Any, inputs: dict[str, Any]) -> list[Row]:
        batch, _, *size = inputs["hidden_states"].shape
        grid = self.family.facts.token_grid(config, *size)
        layout = TokenLayout(*grid, 0, "last", self.token_order)
        return [Row(self.branch, sample, layout) for sample in range(batch)]

    def rearrange_inputs(self, inputs: dict[str, Any], rearrangement: Rearrangement) -> None:
        """Wan 2.2 TI2V has a timestep for each token [B, N]."""
        if inputs["timestep"].dim() == 2:
            inputs["timestep"] = rearrangement.tokens(inputs["timestep"], 1)


class Wan(Family):
    """Wan 2.1 and 2.2, text to video."""

    facts = facts_of("WanPipeline", "Wan")
    attention = "attn1"
    attachment = WanAttachment
    linears = Linears(
        sharing=(
            ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
            ("attn2.to_k", "attn2.to_v"),
            ("attn2.add_k_proj", "attn2.add_v_proj"),
        ),
        single=("attn1.to_out.0", "attn2.to_q", "attn2.to_out.0"),
        gelus=(Gelu("ffn.net.0", before="ffn.net.0.proj", after="ffn.net.2"),),
    )
    absent: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")

    def blocks(self, transformer: Any) -> list[Any]:
        return list(transformer.blocks)

    def processor(self, layer: int, forward: Forward) -> WanProcessor:
        return WanProcessor(layer, forward)

    def stages(self, pipe: Any, steps: int) -> tuple[int, ...]:
        """The second transformer makes the steps whose timesteps are below the boundary."""
        boundary = pipe.config.boundary_ratio
        if boundary is None or len(self.transformers(pipe)) < 2:
            return ()
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)  # the run's own stays as it is
        scheduler.set_timesteps(steps)
        return (int((scheduler.timesteps >= boundary * scheduler.config.num_train_timesteps).sum()),)

    def ends(self, transformer: Any) -> Ends:
        # The embedding gives a grid, which becomes tokens in front of the first block.
        return Ends(None, transformer.proj_out, transformer.rope, first_block=transformer.blocks[0])

    def block_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        return (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0],)

    def block_output(self, output: Any) -> tuple[Tensor, ...]:
        return (output,)

    def joined(self, tokens: tuple[Tensor, ...]) -> Tensor:
        return tokens[0]

    def parts(self, location: str, *, local_files_only: bool) -> dict[str, Any]:
        return {"tokenizer": tokenizer_as_written(location, local_files_only=local_files_only)}

    def classes(self) -> Classes:
        from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

        return Classes(WanPipeline, WanTransformer3DModel, AutoencoderKLWan)

    def encoder(self, pipe: Any) -> Encode:
        def encode_prompt(
            prompt: str,
            negative_prompt: str | None = None,
            do_classifier_free_guidance: bool = True,
            *,
            max_sequence_length: int = 512,
            **_ignored: Any,
        ) -> tuple[Tensor, Tensor | None]:
            """Embeddings [1, T, C] of the prompt, and of the negative prompt where there is guidance."""
            shape = (1, max_sequence_length, self.transformers(pipe)[0].config.text_dim)
            where: Any = {"device": pipe._execution_device, "dtype": self.shape(pipe).dtype}

            def embed(text: str) -> Tensor:
                embeddings = text_noise(text, *shape, **where)
                embeddings[:, text_tokens(text, max_sequence_length) :] = 0  # padding is zero, and attended to
                return embeddings

            return embed(prompt), embed(negative_prompt or "") if do_classifier_free_guidance else None

        return encode_prompt

    def readers(self, pipe: Any) -> tuple[TextReader, ...]:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        def count(text: str) -> int:
            return len(pipe.tokenizer(prompt_clean(text)).input_ids)

        return (TextReader("tokens of a prompt", default_of(pipe, "max_sequence_length"), count),)


FAMILY = Wan()

"""Tokenizers and text encoders of the tiny model, built without any download, and the captions' way through them.

The pipeline wraps each prompt in ``DEFAULT_PROMPT_TEMPLATE`` and drops the first ``crop_start`` = 95 embeddings, a
number that belongs to Llama-3's tokenizer. Ours is a byte-level BPE trained on the template and the captions until
each of their words is one token; the words, marks and special tokens before the prompt then number exactly 95, which
``build_text`` checks. Newlines are tokens of their own, so that no prompt can merge with the template's end. Text is
lower-cased: there is nothing to learn from capitals.

Both encoders are causal, so padding on the right changes nothing before it. Training feeds the Llama captions of one
length without padding, and gets the pipeline's embeddings at the unmasked positions.

Shapes: B captions, L tokens of a caption with its closing <|eot_id|>, T template tokens (95).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from scripts.tiny_world.captions import every_wording

TEMPLATE: str = DEFAULT_PROMPT_TEMPLATE["template"]
TEMPLATE_TOKENS: int = DEFAULT_PROMPT_TEMPLATE["crop_start"]
CLIP_TOKENS = 77
_SKIPPED_LAYERS = 2  # the pipeline reads hidden_states[-3]: the last two layers are there only to be skipped

_LLAMA_SPECIAL = ("<|pad|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_CLIP_START, _CLIP_END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"\n| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s"


@dataclass(frozen=True)
class TextConfig:
    """Widths and depths of the two text encoders."""

    llama_width: int = 128
    llama_heads: int = 4
    llama_layers: int = 4
    clip_width: int = 64
    clip_heads: int = 2
    clip_layers: int = 2


@dataclass(frozen=True)
class Text:
    """Both tokenizers with their encoders."""

    tokenizer: PreTrainedTokenizerFast
    encoder: LlamaModel
    tokenizer_2: CLIPTokenizer
    encoder_2: CLIPTextModel


@dataclass(frozen=True)
class Tokens:
    """Token ids of captions on the CPU: ``llama`` [B, T + longest], ``length`` [B] tokens after the template
    (the closing <|eot_id|> included), ``clip`` [B, 77]."""

    llama: Tensor
    length: Tensor
    clip: Tensor


def build_text(config: TextConfig, seed: int) -> Text:
    """Both tokenizers, of all words of the captions, and randomly initialised encoders.

    Raises:
        RuntimeError: if the template does not cost the number of tokens that the pipeline crops.
    """
    corpus = every_wording()
    tokenizer = _llama_tokenizer(corpus)
    prefix = TEMPLATE.split("{}")[0]
    count = len(tokenizer(prefix).input_ids)
    if count != TEMPLATE_TOKENS:
        raise RuntimeError(f"the template costs {count} tokens, but the pipeline crops {TEMPLATE_TOKENS}")
    tokenizer_2 = _clip_tokenizer(corpus)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = _llama(config, tokenizer)
        encoder_2 = _clip(config, tokenizer_2)
    return Text(tokenizer, encoder, tokenizer_2, encoder_2)


def tokenize(text: Text, captions: Sequence[str]) -> Tokens:
    """Exactly the ids that the pipeline computes, the Llama's without its padding to 351."""
    llama = text.tokenizer([TEMPLATE.format(c) for c in captions], padding="longest", return_tensors="pt")
    clip = text.tokenizer_2(
        list(captions), padding="max_length", max_length=CLIP_TOKENS, truncation=True, return_tensors="pt"
    )
    return Tokens(llama.input_ids, llama.attention_mask.sum(dim=1) - TEMPLATE_TOKENS, clip.input_ids)


def embed(encoder: LlamaModel, encoder_2: CLIPTextModel, llama: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings of captions of one length.

    Args:
        llama: ids [B, T + L] without padding.
        clip: ids [B, 77].

    Returns:
        prompt embeddings [B, L, llama width], pooled embeddings [B, clip width].
    """
    length = llama.shape[1]
    # Without a mask the encoder looks whether sequences were packed together, for which the host waits for the GPU.
    causal = torch.ones(1, 1, length, length, dtype=torch.bool, device=llama.device).tril()
    states = encoder(input_ids=llama, attention_mask=causal, output_hidden_states=True, use_cache=False).hidden_states
    return states[-(_SKIPPED_LAYERS + 1)][:, TEMPLATE_TOKENS:], encoder_2(clip).pooler_output


def states_after_template(encoder: LlamaModel, llama: Tensor) -> Tensor:
    """The embeddings [B, L, llama width] of :func:`embed`; the template, the same for all, is read once."""
    batch, length = llama.shape[0], llama.shape[1] - TEMPLATE_TOKENS
    read = encoder(input_ids=llama[:1, :TEMPLATE_TOKENS], use_cache=True).past_key_values
    read.batch_repeat_interleave(batch)
    causal = torch.ones(length, TEMPLATE_TOKENS + length, dtype=torch.bool, device=llama.device).tril(TEMPLATE_TOKENS)
    states = encoder(
        input_ids=llama[:, TEMPLATE_TOKENS:],
        attention_mask=causal.expand(batch, 1, -1, -1),
        past_key_values=read,
        output_hidden_states=True,
    ).hidden_states
    return states[-(_SKIPPED_LAYERS + 1)]


def _llama_tokenizer(corpus: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,  # more than there are merges to learn
        min_frequency=1,
        special_tokens=list(_LLAMA_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEMPLATE, *corpus], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        padding_side="right",
        model_max_length=8192,
    )


def _clip_tokenizer(corpus: Sequence[str]) -> CLIPTokenizer:
    """CLIP's own normaliser and word splitting, with merges learnt from the captions and every byte as a fallback."""
    bare = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bare.normalizer = normalizers.Lowercase()
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, min_frequency=1, end_of_word_suffix="</w>", special_tokens=[], show_progress=False
    )
    bare.train_from_iterator(corpus, trainer)
    merges = [tuple(pair) for pair in json.loads(bare.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(symbol + "</w>" for symbol in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*words, _CLIP_START, _CLIP_END]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_TOKENS)


def _llama(config: TextConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaModel:
    model = LlamaModel(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.llama_width,
            intermediate_size=2 * config.llama_width,
            num_hidden_layers=config.llama_layers,
            num_attention_heads=config.llama_heads,
            num_key_value_heads=config.llama_heads,
            max_position_embeddings=512,
            initializer_range=config.llama_width**-0.5,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    # Nobody pre-trained this model: words far apart are what makes its features useful from the first step.
    torch.nn.init.normal_(model.embed_tokens.weight, std=1.0)
    return model.eval()


def _clip(config: TextConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.clip_width,
            intermediate_size=2 * config.clip_width,
            projection_dim=config.clip_width,
            num_hidden_layers=config.clip_layers,
            num_attention_heads=config.clip_heads,
            max_position_embeddings=CLIP_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    embeddings = dict(model.named_parameters())
    for name, parameter in embeddings.items():
        if name.endswith("token_embedding.weight"):
            torch.nn.init.normal_(parameter, std=1.0)
        elif name.endswith("position_embedding.weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()

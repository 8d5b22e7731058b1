"""Tokenizers, read as they were written."""

from __future__ import annotations

from typing import Any


def tokenizer_as_written(location: str, *, local_files_only: bool) -> Any:
    """The tokenizer of a pipeline's folder or hub id, with padding on the right.

    Public checkpoints name LlamaTokenizerFast and T5TokenizerFast. transformers 5 answers these names with classes that
    rebuild the pre-tokenizer and the model from the vocabulary alone, and so lose spaces (Llama) or the fall-back to
    bytes (UMT5).
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        location, subfolder="tokenizer", local_files_only=local_files_only
    )
    tokenizer.padding_side = "right"
    return tokenizer

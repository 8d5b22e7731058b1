"""What a pipeline's text encoders do not read of a long prompt, and that it is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adaspa_cli.config import GenerateConfig, resolve
from adaspa_cli.errors import ConfigError
from adaspa_cli.models.registry import check_read, family_of
from adaspa_cli.models.text_reader import TextReader
from tests.pipelines import (
    HEIGHT,
    WIDTH,
    cogvideox,
    hunyuan_video,
    hunyuan_video15,
    hunyuan_video_image,
    qwen_and_byt5,
    wan,
)

WORDS = "a red circle moves left on a blue background"
LONG = " ".join(WORDS for _ in range(60))


def with_encoders() -> Any:
    """HunyuanVideo 1.5, whose template the real tokenizer makes 108 tokens of; here the same share is cut off."""
    pipe = hunyuan_video15()
    pipe.register_modules(**qwen_and_byt5())
    del pipe.encode_prompt  # the stand-in
    chat = [{"role": "system", "content": pipe.system_message}, {"role": "user", "content": ""}]
    rendered = pipe.tokenizer.apply_chat_template(chat, tokenize=False)
    pipe.prompt_template_encode_start_idx = len(pipe.tokenizer(rendered.removesuffix("<|im_end|>\n")).input_ids)
    return pipe


def embeddings(pipe: Any, prompt: str) -> torch.Tensor:
    """What the pipeline gives its transformer for a prompt with the limits that its call has."""
    name = "max_sequence_length"
    reader = family_of(pipe).readers(pipe)[0]
    own = {} if hasattr(pipe, "tokenizer_max_length") else {name: reader.limit}
    with torch.inference_mode():
        return pipe.encode_prompt(prompt, **own)[0]


@pytest.mark.parametrize(("make", "limit"), [(hunyuan_video, 256), (cogvideox, 226), (wan, 512), (with_encoders, 40)])
def test_the_cut_is_where_the_pipeline_stops_reading(make: Callable[[], Any], limit: int) -> None:
    pipe = make()
    reader = family_of(pipe).readers(pipe)[0]
    found = reader.cut(LONG)
    assert reader.limit == limit
    assert found is not None
    rest, tokens = found
    assert tokens == reader.count(LONG) > limit
    read = LONG[: -len(rest)]
    assert reader.cut(read) is None
    first, *_ = rest.split()
    assert reader.cut(f"{read}{first}") is not None
    whole = embeddings(pipe, LONG)
    # The word at the cut may be read in part: it stays, and what follows it is of no matter.
    assert torch.equal(whole, embeddings(pipe, LONG[: len(read) + len(first)] + " star green" * 300))
    last = read.split()[-1]
    assert not torch.equal(whole, embeddings(pipe, f"{read.rstrip().removesuffix(last)}{last[::-1]} {rest}"))


def test_a_text_of_just_as_many_tokens_is_read_as_a_whole() -> None:
    reader = TextReader("tokens", 3, lambda text: len(text.split()))
    assert reader.cut("one two three\n") is None
    assert reader.cut("") is None
    assert reader.cut("one two three  four five") == ("  four five", 5)


def test_scripts_without_spaces_are_cut_between_characters() -> None:
    reader = TextReader("tokens", 4, len)
    assert reader.cut("红色的圆向左移动") == ("向左移动", 8)


def test_a_single_word_that_is_too_long_is_named_whole() -> None:
    assert TextReader("tokens", 0, len).cut("ab") == ("ab", 2)


def test_image_to_video_loses_the_end_of_its_template() -> None:
    pipe = hunyuan_video_image("token_replace")
    pipe.tokenizer = hunyuan_video().tokenizer
    (reader,) = family_of(pipe).readers(pipe)
    assert reader.limit == 252


def test_texts_in_quotation_marks_have_an_encoder_of_their_own() -> None:
    pipe = with_encoders()
    _, glyphs = family_of(pipe).readers(pipe)
    assert glyphs.cut("a long text without any quotation marks, of which it reads nothing") is None
    assert glyphs.cut('a sign with the words "an inn"') == (' inn". ', 15)
    assert glyphs.cut('a sign with the word "inn"') is None


def said(*given: Any) -> list[str]:
    lines: list[str] = []
    check_read(*given, lines.append)
    return lines


def config(**settings: Any) -> GenerateConfig:
    return resolve({"height": HEIGHT, "width": WIDTH} | settings).config


def test_long_prompts_are_named_in_one_line() -> None:
    pipe = hunyuan_video()
    assert said(pipe, config(), [WORDS]) == []
    (line,) = said(pipe, config(), [WORDS, LONG, LONG, *(f"{n} {LONG}" for n in range(4))])
    assert line.startswith(
        "tiny reads 256 tokens of a prompt and drops the rest: 'a red circle moves left on a blue backg…' ("
    )
    assert " tokens) from '" in line
    assert line.endswith("; 2 more are too long; --strict-prompt refuses such prompts")


def test_strict_prompt_refuses_what_is_not_read() -> None:
    pipe = hunyuan_video()
    assert said(pipe, config(strict_prompt=True), [WORDS]) == []
    with pytest.raises(
        ConfigError, match=r"tiny reads 256 tokens of a prompt and drops the rest: .* from '"
    ) as refused:
        said(pipe, config(strict_prompt=True), [LONG])
    assert refused.value.hint == "shorten the prompt, or drop --strict-prompt"


def test_a_negative_prompt_counts_where_there_is_guidance() -> None:
    pipe = cogvideox()
    guided = config(model="cogvideox-5b", negative_prompt=LONG, guidance_scale=6.0)
    assert len(said(pipe, guided, [WORDS])) == 1
    unguided = dataclasses.replace(guided, sampling=dataclasses.replace(guided.sampling, guidance_scale=1.0))
    assert said(pipe, unguided, [WORDS]) == []


def test_random_weights_read_nothing() -> None:
    assert said(SimpleNamespace(tokenizer=None), config(), [LONG]) == []

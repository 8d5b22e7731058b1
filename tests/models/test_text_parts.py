"""A pipeline of its tokenizers alone says of a prompt what the whole one says, in every family."""

import shutil
from pathlib import Path

import pytest

from adaspa_cli.config import ModelConfig
from adaspa_cli.errors import ModelError
from adaspa_cli.models.registry import family_of
from adaspa_cli.models.text_parts import load_text_parts
from tests.models.every_family import CASES
from tests.pipelines import hunyuan_video15, qwen_and_byt5, save

LONG = f'a sign that says "{"to the left and to the right " * 100}"'


def cuts(pipe: object) -> list[tuple[str, int] | None]:
    return [reader.cut(LONG) for reader in family_of(pipe).readers(pipe)]


@pytest.mark.parametrize("family", CASES)
def test_a_prompt_is_cut_where_the_whole_pipeline_cuts_it(family: str, tmp_path: Path) -> None:
    pipe = CASES[family].make()
    if pipe.tokenizer is None:
        pipe.register_modules(**qwen_and_byt5())
    folder = save(pipe, tmp_path / "saved")
    for weights in folder.glob("*/*.safetensors"):
        weights.unlink()
    alone = load_text_parts(ModelConfig(weights=str(folder)))
    assert alone is not None
    for limit in ("tokenizer_max_length", "tokenizer_2_max_length"):
        if hasattr(pipe, limit):  # the small pipeline has others than its class
            setattr(alone, limit, getattr(pipe, limit))
    assert cuts(alone) == cuts(pipe)
    assert any(cuts(alone))
    assert all(alone.components[name] is None for name in family_of(alone).facts.transformers)


def test_without_tokenizers_or_with_random_weights_there_is_none(tmp_path: Path) -> None:
    assert load_text_parts(ModelConfig(weights=str(save(hunyuan_video15(), tmp_path / "saved")))) is None
    assert load_text_parts(ModelConfig(random_weights=True)) is None
    assert load_text_parts(ModelConfig(model="hunyuan", weights="nobody/has-this")) is None


def test_a_broken_tokenizer_is_named(hunyuan_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(hunyuan_folder, folder)
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load the tokenizer of"):
        load_text_parts(ModelConfig(weights=str(folder)))


def test_an_index_without_tokenizers_is_no_fault_of_a_plan(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "CogVideoXPipeline"}')
    assert load_text_parts(ModelConfig(weights=str(tmp_path))) is None

"""Which of a checkpoint's files are loaded."""

import pytest
import torch

from adaspa_cli.errors import ModelError
from adaspa_cli.models.weight_files import variant_of

PLAIN = ["transformer/diffusion_pytorch_model-00001-of-00002.safetensors", "vae/diffusion_pytorch_model.safetensors"]
FP16 = ["transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "vae/diffusion_pytorch_model.fp16.bin"]
OLD = ["text_encoder/model-00001-of-00002.fp16.safetensors"]  # the way in which shards used to be named
BF16 = [name.replace("fp16", "bf16") for name in FP16]
OTHERS = ["transformer/config.json", "tokenizer/spiece.model", "transformer/lora.fp16.safetensors", "model_index.json"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], None),
        (PLAIN, None),
        (FP16, "fp16"),
        (OLD, "fp16"),
        (PLAIN + FP16, None),
        (PLAIN[:1] + FP16[1:], "fp16"),
        (FP16 + OLD, "fp16"),
        (FP16 + BF16, "bf16"),
        (FP16 + BF16[1:], "fp16"),
    ],
)
def test_a_variant_is_loaded_where_there_are_no_plain_weights(files: list[str], expected: str | None) -> None:
    assert variant_of([*OTHERS, *files], torch.bfloat16, "model") == expected


def test_several_variants_of_another_dtype_are_named() -> None:
    with pytest.raises(ModelError, match="model has only the weight variants bf16, fp16") as caught:
        variant_of(FP16 + BF16, torch.float32, "model")
    assert caught.value.hint == "use --dtype float16"
    with pytest.raises(ModelError, match="the weight variants bf16, fp16") as caught:
        variant_of(FP16[:1] + BF16[1:], torch.bfloat16, "model")
    assert caught.value.hint == "keep the files of one variant"

"""Queries and keys are normalised and rotated as diffusers does it, by PyTorch and, on a GPU, by the kernel."""

from typing import Any

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed
from diffusers.models.normalization import RMSNorm
from torch import Tensor

from adaspa_cli.models.qk import Rotation, kernel_arguments, prepare

HEAD_DIM = 64


def norm_of(kind: str) -> torch.nn.Module:
    norm = {"rms": RMSNorm, "layer": torch.nn.LayerNorm}[kind](HEAD_DIM, eps=1e-6).requires_grad_(False)
    random = torch.Generator().manual_seed(1)
    for parameter in norm.parameters():
        parameter.copy_(torch.rand(HEAD_DIM, generator=random) + 0.5)
    return norm


def expected_of(x: Tensor, norm: torch.nn.Module | None, rotary: tuple[Tensor, Tensor], first: int) -> Tensor:
    """By diffusers' own functions."""
    normal = x if norm is None else norm(x)
    end = first + len(rotary[0])
    turned = apply_rotary_emb(normal[:, first:end], rotary, sequence_dim=1)
    return torch.cat([normal[:, :first], turned, normal[:, end:]], dim=1)


@pytest.mark.parametrize(
    ("before", "video", "after"),
    [
        (0, 1, 0),
        (5, 60, 0),
        (30, 10, 3),
        (0, 1600, 448),
        (0, 2048, 80),
        (80, 960, 0),
        (1024, 1024, 0),
        (1600, 4800, 0),
        (2080, 160, 48),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["rms", "layer", None])
def test_as_diffusers_does(
    dtype: torch.dtype, kind: str | None, before: int, video: int, after: int, device: torch.device
) -> None:
    """Also more than a piece of it, which begin and end anywhere, of a strided view that is left as it was, and in
    place."""
    random = torch.Generator().manual_seed(video)
    wide = torch.randn(2, before + video + after, 3, HEAD_DIM + 16, generator=random).to(device, dtype)
    x, norm = wide[..., 8 : HEAD_DIM + 8], None if kind is None else norm_of(kind).to(device, dtype)
    rotary = get_1d_rotary_pos_embed(HEAD_DIM, torch.arange(video).float() + 1, use_real=True)
    rotary = rotary[0].to(device), rotary[1].to(device)
    untouched, expected = wide.clone(), expected_of(x, norm, rotary, before)
    made = torch.full(x.shape, torch.nan, dtype=dtype, device=device)
    prepare(norm, x, Rotation.of(rotary, device, before), out=made)
    # On the CPU the same float32 products, of which a sum may be fused; the kernel rounds to 16 bits once, not thrice.
    exact = {torch.float32: {"rtol": 1e-6, "atol": 1e-6}, torch.bfloat16: {}}
    close = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}
    torch.testing.assert_close(made, expected, **(exact if device.type == "cpu" else close)[dtype])
    assert torch.equal(wide, untouched)
    own = x.clone()
    prepare(norm, own, Rotation.of(rotary, device, before), out=own)
    assert torch.equal(own, made)


def test_without_positions_only_the_norm(device: torch.device) -> None:
    x, norm = torch.randn(1, 9, 2, HEAD_DIM, device=device), norm_of("rms").to(device)
    out = torch.empty_like(x)
    prepare(norm, x, None, out=out)
    torch.testing.assert_close(out, norm(x))
    prepare(None, x, None, out=out)
    assert torch.equal(out, x)


def test_the_kernel_stands_for_known_norms_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hooked norm is called, and one whose weights are elsewhere."""
    import adaspa_kernels

    def arguments(norm: torch.nn.Module | None, x: torch.Tensor) -> dict[str, Any] | None:
        return kernel_arguments(norm, x, on="meta")

    monkeypatch.setattr(adaspa_kernels, "unavailable", lambda _device: None)
    x = torch.empty(1, 2, 3, HEAD_DIM, device="meta")
    here = norm_of("rms").to("meta")
    found = arguments(here, x)
    assert found is not None
    assert (found["norm"], found["eps"], found["bias"]) == ("rms", 1e-6, None)
    assert found["weight"] is here.weight
    assert arguments(None, x) == {}
    assert arguments(norm_of("layer").to("meta"), x)["norm"] == "layer"  # type: ignore[index]
    assert arguments(torch.nn.Identity(), x) is None
    assert arguments(norm_of("rms"), x) is None
    assert arguments(None, x[..., :48]) is None
    assert arguments(None, x.transpose(2, 3)) is None
    here.register_forward_hook(lambda *_: None)
    assert arguments(here, x) is None


def test_a_cpu_needs_no_kernel() -> None:
    assert kernel_arguments(norm_of("rms"), torch.zeros(1, 2, 3, HEAD_DIM)) is None

"""ST-LPIPS: the same distances as its authors' code, which is not needed to compute them."""

import importlib
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from adaspa_cli.quality import st_lpips
from adaspa_cli.quality.st_lpips import ShiftTolerantLpips, UnavailableError

CPU = torch.device("cpu")
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("stlpips_pytorch") is None, reason="needs the weights of stlpips-pytorch"
)


def pictures(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [n, 3, H, W] and the same with noise."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(shape, generator=generator)
    return clean, (clean + 0.2 * torch.randn(shape, generator=generator)).clamp(0, 1)


def authors_metric(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of the package itself, which imports three others that it uses for other networks."""
    for name in ("torchvision", "torchsummary", "IPython"):
        stand_in = types.ModuleType(name)
        stand_in.models = stand_in.summary = stand_in.embed = None  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, stand_in)
    before = set(sys.modules)
    metric = importlib.import_module("stlpips_pytorch.stlpips").LPIPS(variant="shift_tolerant", verbose=False)
    for name in set(sys.modules) - before:
        del sys.modules[name]
    return metric


@needs_weights
@pytest.mark.parametrize("size", [(32, 48), (33, 50)])
def test_distances_are_those_of_the_authors_code(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pictures(3, 3, *size)
    with torch.no_grad():
        expected = authors_metric(monkeypatch)(a, b, normalize=True).flatten()
    assert expected.min() > 1e-3
    assert torch.allclose(ShiftTolerantLpips(CPU)(a, b), expected, rtol=1e-5, atol=0)


@needs_weights
def test_equal_pictures_are_at_distance_zero_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = ShiftTolerantLpips(CPU)
    a, b = pictures(3, 3, 32, 40)
    assert metric(a, a).tolist() == [0.0] * 3
    whole = metric(a, b)
    monkeypatch.setattr(st_lpips, "_PIXELS_AT_ONCE", 2 * 32 * 40)
    assert torch.allclose(metric(a, b), whole, rtol=1e-6, atol=0)


@needs_weights
def test_only_the_weights_of_the_package_are_used_whatever_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        metric = ShiftTolerantLpips(CPU)
    finally:
        torch.set_default_dtype(torch.float32)
    assert "stlpips_pytorch" not in sys.modules
    a, b = pictures(1, 3, 32, 32)
    assert metric(a, b).dtype == torch.float32


class Intruder:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize(
    "content", [b"", pickle.dumps(Intruder(), 2), pickle.dumps({"lin0": 1}, 2)], ids=["empty", "code", "no tensors"]
)
def test_a_file_that_holds_no_weights_is_a_reason_and_nothing_in_it_runs(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "stlpips_pytorch"
    weights = package / "weights" / "vST0.0" / "alex_shift_tolerant.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(content)
    (package / "__init__.py").write_text("raise RuntimeError('the package was run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnavailableError, match="no weights of ST-LPIPS that can be read"):
        ShiftTolerantLpips(CPU)


def test_without_the_package_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UnavailableError, match=r"pip install 'adaspa\[perceptual\]'"):
        ShiftTolerantLpips(CPU)


def test_the_reason_says_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    (tmp_path / "stlpips_pytorch").mkdir()
    (tmp_path / "stlpips_pytorch" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(UnavailableError, match="CUDA out of memory"):
        ShiftTolerantLpips(CPU)

"""SSIM against torchmetrics', in float64, at sizes that its bands do and do not divide."""

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from adaspa_cli.quality.by_frame import by_frame
from adaspa_cli.quality.ssim import ssim


def pair(frames: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random smooth frames [n, 3, H, W] in [0, 1], and the same with noise."""
    random = torch.Generator().manual_seed(height)
    coarse = torch.rand((frames, 3, 4, 5), generator=random)
    clean = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return clean, (clean + 0.05 * torch.randn(clean.shape, generator=random)).clamp(0, 1)


@pytest.mark.parametrize(("height", "width"), [(11, 11), (40, 33), (81, 17), (137, 96)])
def test_it_is_no_farther_from_the_exact_value_than_torchmetrics(height: int, width: int) -> None:
    a, b = pair(3, height, width)
    exact = structural_similarity_index_measure(a.double(), b.double(), data_range=1.0, reduction="none")
    theirs = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    error = (ssim(a, b) - exact).abs().max()
    assert error <= max((theirs - exact).abs().max(), 2e-7)  # 2e-7: rounding of a value near 1 in float32


def test_equal_frames_and_frames_in_any_memory_layout() -> None:
    a, b = pair(2, 48, 64)
    assert ssim(a, a).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    channels_last = [frames.contiguous(memory_format=torch.channels_last) for frames in (a, b)]
    assert torch.equal(ssim(*channels_last), ssim(a, b))
    assert torch.equal(ssim(a[1:], b[1:])[0], ssim(a, b)[1])


def test_frames_that_are_smaller_than_the_window_have_none() -> None:
    a, b = pair(1, 10, 64)
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, got 10 x 64"):
        ssim(a, b)


def test_curves_tell_how_far_they_are() -> None:
    video = torch.randint(0, 255, (17, 16, 16, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    heard: list[tuple[int, int]] = []
    curves = by_frame(video, video, lambda done, of: heard.append((done, of)))
    assert heard == [(0, 17), (8, 17), (16, 17), (17, 17)]
    assert [len(values) for values in curves.values()] == [17, 17]

"""PSNR, SSIM and ST-LPIPS of videos whose difference is known, and metrics that cannot be had."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adaspa_cli.errors import BackendError
from adaspa_cli.quality.measurement import Measurement
from adaspa_cli.quality.video_metrics import PSNR_OF_EQUAL_FRAMES, VideoMetrics, pieces

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def metrics() -> VideoMetrics:
    return VideoMetrics(CPU)


def picture(frames: int = 10) -> NDArray[np.uint8]:
    """Smooth frames [F, 48, 64, 3] with room for noise at both ends of the scale."""
    rows, columns = np.mgrid[0:48, 0:64]
    waves = 128 + 60 * np.sin(rows / 7)[None] * np.cos(columns / 9 + np.arange(frames)[:, None, None])
    return np.repeat(waves[..., None], 3, axis=-1).astype(np.uint8)


def test_pieces_keep_their_channels_last() -> None:
    """A copy to channels first would double the time of SSIM on a CPU."""
    (first, _), (last, _) = pieces(picture(), picture(), CPU)
    assert (first.shape, last.shape) == ((8, 3, 48, 64), (2, 3, 48, 64))
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, torch.from_numpy(picture()[8:]).permute(0, 3, 1, 2) / 255)


def test_identical_videos(metrics: VideoMetrics) -> None:
    found = metrics.compare(picture(), picture())
    assert found["psnr"].value == PSNR_OF_EQUAL_FRAMES
    assert found["ssim"].value == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("step", [1, 4, 16])
def test_psnr_of_a_known_error(metrics: VideoMetrics, step: int) -> None:
    """Every pixel differs by the same step of 255: the mean squared error is its square."""
    changed = picture() + np.uint8(step)
    assert metrics.compare(changed, picture())["psnr"].value == pytest.approx(20 * np.log10(255 / step), abs=1e-3)


def test_psnr_of_noise_of_known_variance(metrics: VideoMetrics) -> None:
    noise = np.random.default_rng(0).normal(0, 8, picture().shape).round()
    changed = (picture() + noise).astype(np.uint8)
    expected = 10 * np.log10(255**2 / (64 + 1 / 12))  # rounding adds a twelfth
    assert metrics.compare(changed, picture())["psnr"].value == pytest.approx(expected, abs=0.05)


def test_means_are_over_frames_whatever_the_pieces(metrics: VideoMetrics) -> None:
    """Eleven frames, of which the last alone differs: it weighs one eleventh."""
    changed = picture(11)
    changed[-1] += 5
    psnr = 20 * np.log10(255 / 5)
    expected = (10 * PSNR_OF_EQUAL_FRAMES + psnr) / 11
    found = metrics.compare(changed, picture(11))
    assert found["psnr"].value == pytest.approx(expected, abs=1e-3)
    alone = metrics.compare(changed[-1:], picture(11)[-1:])["ssim"].value
    assert alone is not None
    assert found["ssim"].value == pytest.approx((10 + alone) / 11, abs=1e-6)


def test_ssim_falls_with_noise(metrics: VideoMetrics) -> None:
    random = np.random.default_rng(0)
    values = []
    for strength in (2, 8, 24):
        noise = random.normal(0, strength, picture().shape)
        value = metrics.compare((picture() + noise).clip(0, 255).astype(np.uint8), picture())["ssim"].value
        assert value is not None
        values.append(value)
    assert 1 > values[0] > values[1] > values[2] > 0


def test_videos_of_different_shape_have_no_metric(metrics: VideoMetrics) -> None:
    found = metrics.compare(picture(5), picture(6))
    assert {m.value for m in found.values()} == {None}
    assert "differ in shape" in str(found["psnr"].reason)


def test_frames_that_are_too_small_for_a_metric_do_not_stop_the_others(metrics: VideoMetrics) -> None:
    tiny = picture(2)[:, :4, :4]
    found = metrics.compare(tiny, tiny)
    assert found["psnr"].value == PSNR_OF_EQUAL_FRAMES
    assert found["ssim"].value is None
    assert found["ssim"].reason


def test_st_lpips_grows_with_noise(metrics: VideoMetrics) -> None:
    if reason := metrics.reasons.get("st_lpips"):
        pytest.skip(reason)
    random, values = np.random.default_rng(0), [0.0]
    for strength in (0, 8, 24):
        noise = random.normal(0, strength, picture(9).shape)
        value = metrics.compare((picture(9) + noise).clip(0, 255).astype(np.uint8), picture(9))["st_lpips"].value
        assert value is not None
        values.append(value)
    assert values[0] == values[1] < values[2] < values[3]


def test_lpips_is_n_a_without_its_weights_and_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("a download"))
    monkeypatch.setitem(sys.modules, "torchvision", sys)  # anything that can be imported
    metrics = VideoMetrics(CPU)
    assert str(tmp_path) in metrics.reasons["lpips"]
    found = metrics.compare(picture(1), picture(1))
    assert found["lpips"].value is None
    assert found["lpips"] == Measurement(None, metrics.reasons["lpips"])
    assert found["psnr"].value is not None


def test_lpips_is_n_a_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    reasons = VideoMetrics(CPU).reasons
    assert "torchvision cannot be imported" in reasons["lpips"]
    assert "psnr" not in reasons


def forget(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)


def test_a_torchvision_that_does_not_fit_torch_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a torchvision, and with it torchmetrics, fails on import in just this way."""
    for package, line in (
        ("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')"),
        ("torchmetrics", "import torchvision"),
    ):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(line + "\n")
        forget(monkeypatch, package)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match="operator torchvision::nms does not exist") as told:
        VideoMetrics(CPU)
    assert f"torchvision does not fit torch {torch.__version__}" in str(told.value.hint)
    assert "\n" not in told.value.message


def test_without_torchmetrics_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, "torchmetrics")
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(BackendError, match="PSNR and SSIM need torchmetrics") as told:
        VideoMetrics(CPU)
    assert "pip install --upgrade torchmetrics" in str(told.value.hint)

"""PSNR and SSIM by frame."""

import torch

from adaspa_cli.quality.by_frame import by_frame


def test_curves_tell_how_far_they_are() -> None:
    video = torch.randint(0, 255, (17, 16, 16, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    heard: list[tuple[int, int]] = []
    curves = by_frame(video, video, lambda done, of: heard.append((done, of)))
    assert heard == [(0, 17), (8, 17), (16, 17), (17, 17)]
    assert [len(values) for values in curves.values()] == [17, 17]

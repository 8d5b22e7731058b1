"""A VAE's tiles spread over processes make the video that one process makes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adaspa_cli.distributed.decoding import spread_decoding
from adaspa_cli.distributed.teams import Teams
from tests.distributed.ranks import together
from tests.pipelines import cogvideox, hunyuan_video, wan

TILES = {"tile_sample_min_height": 32, "tile_sample_min_width": 32}
STRIDES = {"tile_sample_stride_height": 24, "tile_sample_stride_width": 24}
FRAMEWISE = {"tile_sample_min_num_frames": 8, "tile_sample_stride_num_frames": 4}

VAES: dict[str, tuple[Callable[[], Any], dict[str, Any], int]] = {
    "HunyuanVideo": (hunyuan_video, TILES | STRIDES, 3),
    "HunyuanVideo, pieces of time": (hunyuan_video, TILES | STRIDES | FRAMEWISE, 5),
    "HunyuanVideo, one tile": (hunyuan_video, {}, 2),
    "CogVideoX": (cogvideox, TILES, 5),
    "Wan": (wan, TILES | STRIDES, 3),
    "Wan 2.2 5B": (lambda: wan("2.2-5b"), TILES | STRIDES, 3),
}


@pytest.mark.parametrize(("make", "tiles", "frames"), VAES.values(), ids=VAES.keys())
def test_the_video_is_the_same(make: Callable[[], Any], tiles: dict[str, Any], frames: int, tmp_path: Path) -> None:
    vae = make().vae
    if tiles:
        vae.enable_tiling(**tiles)
    channels = getattr(vae.config, "latent_channels", None) or vae.config.z_dim
    latents = torch.randn(1, channels, frames, 8, 6, generator=torch.Generator().manual_seed(0))
    decoded: list[int] = []
    vae.decoder.conv_in.register_forward_hook(lambda *_: decoded.append(1))
    with torch.inference_mode():
        expected = vae.decode(latents, return_dict=False)[0]
    whole = len(decoded)

    def case(teams: Teams) -> None:
        decoded.clear()
        override = spread_decoding(vae, teams.all)
        with torch.inference_mode():
            made = vae.decode(latents, return_dict=False)[0]
            override.restore()
            if teams.all.rank == 0:
                assert torch.equal(made, expected)
            assert made.isfinite().all()
        assert teams.all.sum(torch.tensor(len(decoded))) == whole
        assert not tiles or len(decoded) < whole
        assert "forward" not in vars(vae.decoder)

    together(2, tmp_path, case)

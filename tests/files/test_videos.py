"""Video files: what players read, and frames that come back."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from adaspa_cli.errors import DiskFullError, OutputError
from adaspa_cli.files.videos import read_frames, write_lossless, write_video


def gradient(frames: int = 5, height: int = 32, width: int = 48) -> NDArray[np.uint8]:
    """A grey slope that brightens from frame to frame."""
    slope = np.linspace(0, 120, width, dtype=np.float32)[None, None, :, None]
    brightness = 20 * np.arange(frames, dtype=np.float32)[:, None, None, None]
    return np.broadcast_to(slope + brightness, (frames, height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(("count", "fps"), [(1, 8), (5, 8), (9, 24)])
def test_a_video_can_be_read_back(tmp_path: Path, count: int, fps: int) -> None:
    path = tmp_path / "x.mp4"
    frames = gradient(count)
    write_video(path, frames, fps)
    assert [p.name for p in tmp_path.iterdir()] == ["x.mp4"]
    with imageio.get_reader(path) as reader:
        meta = reader.get_meta_data()
    read = np.stack(imageio.mimread(path))
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert meta["fps"] == fps
    assert meta["size"] == (48, 32)
    assert read.shape == frames.shape
    # Lossy, and the colours go through 8 bits of limited range: smooth greys come back to within a few levels.
    assert np.abs(read.astype(int) - frames).mean() < 4


def test_videos_have_the_size_that_was_asked_for(tmp_path: Path) -> None:
    """ffmpeg would scale to multiples of 16 unless told otherwise; 720 and 1360 are such, 1080 and 90 are not."""
    write_video(tmp_path / "x.mp4", gradient(2, 90, 54), 8)
    with imageio.get_reader(tmp_path / "x.mp4") as reader:
        assert reader.get_meta_data()["size"] == (54, 90)


def test_ffmpeg_itself_finds_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    write_video(path, gradient(), 8)
    check = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "null", "-"]
    done = subprocess.run(check, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_video_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write") as caught:
        write_video(tmp_path / "missing" / "x.mp4", gradient(), 8)
    assert "\n" not in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_lossless_frames_come_back_bit_by_bit(tmp_path: Path) -> None:
    """Noise is what a lossy codec cannot keep; odd sizes are what chroma subsampling cannot."""
    frames = np.random.default_rng(0).integers(0, 256, (5, 34, 46, 3), dtype=np.uint8)
    write_lossless(tmp_path / "x.lossless.mkv", frames, fps=8)
    assert np.array_equal(read_frames(tmp_path / "x.lossless.mkv"), frames)


def test_frames_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.mkv").write_bytes(b"no video")
    with pytest.raises(OutputError, match="cannot read") as caught:
        read_frames(tmp_path / "x.mkv")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("write", [write_video, write_lossless])
def test_a_disk_that_is_full_is_said_and_nothing_is_left(
    tmp_path: Path, write: Callable[[Path, NDArray[np.uint8], int], None]
) -> None:
    """ffmpeg writes to the partial file, which is a device that is always full."""
    (tmp_path / f"x.partial{os.getpid()}.mkv").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="the disk is full") as told:
        write(tmp_path / "x.mkv", gradient(), 8)
    assert "\n" not in told.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_limit_on_the_size_of_files_is_named(tmp_path: Path) -> None:
    """ffmpeg is killed by a signal then, and says nothing."""
    code = (
        "import resource, sys, numpy as np; from pathlib import Path\n"
        "from adaspa_cli.files.videos import write_video\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "frames = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)\n"
        "write_video(Path(sys.argv[1]), frames, 8)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.mp4")], capture_output=True, text=True, check=False
    )
    assert "OutputError: cannot write" in done.stderr
    assert "exceeds the size limit (ulimit -f)" in done.stderr
    assert list(tmp_path.iterdir()) == []

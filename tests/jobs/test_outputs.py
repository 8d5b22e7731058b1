"""Files of a run: good names, nothing overwritten, nothing half-written, videos that players read."""

import json
import re
import subprocess
from pathlib import Path

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from adaspa_cli.errors import OutputError
from adaspa_cli.jobs.outputs import (
    find_place,
    prepare_folder,
    read_frames,
    report_path,
    video_name,
    whole_file,
    write_json,
    write_lossless,
    write_text,
    write_video,
)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red circle moves left", "a-red-circle-moves-left-seed7"),
        ("  spaces,\tand -- marks!  ", "spaces-and-marks-seed7"),
        ("Café über Ångström", "cafe-uber-angstrom-seed7"),
        ("红色的圆", "video-seed7"),
        ("🟢", "video-seed7"),
        ("../../etc/passwd", "etc-passwd-seed7"),
        ("a\nb\0c", "a-b-c-seed7"),
        ("-rf", "rf-seed7"),
    ],
)
def test_names_say_what_the_video_shows(prompt: str, name: str) -> None:
    assert video_name(prompt, 7) == name


def test_long_prompts_are_cut() -> None:
    name = video_name("word " * 100, 123456789)
    assert len(name) <= 60 + len("-seed123456789")
    assert re.fullmatch(r"(word-)+wo?r?d?-?seed123456789|(word-)+seed123456789", name)
    assert "--" not in name


def finish(folder: Path, name: str, fingerprint: str) -> None:
    """A complete video, as far as names go."""
    (folder / f"{name}.mp4").touch()
    (folder / f"{name}.report.json").write_text(json.dumps({"fingerprint": fingerprint}))


def test_a_free_name_is_taken_as_it_is(tmp_path: Path) -> None:
    assert find_place(tmp_path, "x", "f", resume=False) == (tmp_path / "x.mp4", False)


def test_collisions_are_numbered(tmp_path: Path) -> None:
    finish(tmp_path, "x", "f")
    assert find_place(tmp_path, "x", "f", resume=False) == (tmp_path / "x-2.mp4", False)
    finish(tmp_path, "x-2", "f")
    assert find_place(tmp_path, "x", "f", resume=False) == (tmp_path / "x-3.mp4", False)


def test_places_of_the_same_run_collide_too(tmp_path: Path) -> None:
    taken = [tmp_path / "x.mp4"]
    assert find_place(tmp_path, "x", "f", resume=False, taken=taken) == (tmp_path / "x-2.mp4", False)


def test_resume_finds_what_is_complete(tmp_path: Path) -> None:
    finish(tmp_path, "x", "other")
    finish(tmp_path, "x-2", "f")
    assert find_place(tmp_path, "x", "f", resume=True) == (tmp_path / "x-2.mp4", True)


def test_resume_does_not_give_one_video_to_two_jobs(tmp_path: Path) -> None:
    finish(tmp_path, "x", "f")
    taken = [tmp_path / "x.mp4"]
    assert find_place(tmp_path, "x", "f", resume=True, taken=taken) == (tmp_path / "x-2.mp4", False)


@pytest.mark.parametrize("left_over", ["video", "report", "broken report", "list report"])
def test_what_is_incomplete_is_neither_skipped_nor_overwritten(tmp_path: Path, left_over: str) -> None:
    if left_over != "report":
        (tmp_path / "x.mp4").touch()
    contents = {"report": '{"fingerprint": "f"}', "broken report": '{"finger', "list report": "[]"}
    if left_over in contents:
        (tmp_path / "x.report.json").write_text(contents[left_over])
    assert find_place(tmp_path, "x", "f", resume=True) == (tmp_path / "x-2.mp4", False)


def test_the_report_lies_beside_its_video() -> None:
    assert report_path(Path("a/x-2.mp4")) == Path("a/x-2.report.json")


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    with whole_file(target) as partial:
        partial.write_text("content")
        assert partial.suffix == ".txt"
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]
    assert target.read_text() == "content"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("begun", [True, False])
def test_what_is_interrupted_leaves_nothing(tmp_path: Path, error: type[BaseException], begun: bool) -> None:
    def write() -> None:
        with whole_file(tmp_path / "x.txt") as partial:
            if begun:
                partial.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert list(tmp_path.iterdir()) == []


def test_the_output_folder_is_made_and_proved(tmp_path: Path) -> None:
    folder = prepare_folder(str(tmp_path / "a" / "b"))
    assert folder.is_dir()
    assert list(folder.iterdir()) == []
    assert prepare_folder(str(folder)) == folder


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for impossible in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/adaspa")):
        with pytest.raises(OutputError, match=f"cannot write to {impossible}: .+") as caught:
            prepare_folder(str(impossible))
        assert "--out" in str(caught.value.hint)


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


def test_json_is_readable_utf8(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"prompt": "ein grüner Kreis 🟢", "n": [1, 2.5, None]})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"prompt": "ein grüner Kreis 🟢", "n": [1, 2.5, None]}
    assert "grüner" in text
    assert text.endswith("}\n")


def test_json_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_json(tmp_path / "missing" / "x.json", {})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_was_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"

    def write() -> None:
        with whole_file(path) as partial:
            partial.write_text("mine")
            path.write_text("another process's")

    with pytest.raises(FileExistsError):
        write()
    assert path.read_text() == "another process's"
    assert list(tmp_path.iterdir()) == [path]


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


def test_text_replaces_only_where_it_may(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    write_text(path, "old")
    with pytest.raises(OutputError):
        write_text(path, "new")
    assert path.read_text() == "old"
    write_text(path, "new", replace=True)
    assert path.read_text() == "new"


def test_a_run_that_ends_in_latents_is_complete_with_its_report(tmp_path: Path) -> None:
    (tmp_path / "x.report.json").write_text(json.dumps({"fingerprint": "f"}))
    assert find_place(tmp_path, "x", "f", resume=True, decodes=False) == (tmp_path / "x.mp4", True)
    assert find_place(tmp_path, "x", "f", resume=True) == (tmp_path / "x-2.mp4", False)

"""Places of videos: good names, nothing overwritten, and what is complete found again."""

import json
import re
from pathlib import Path

import pytest

from adaspa_cli.jobs.places import find_place, report_path, video_name


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


def test_a_run_that_ends_in_latents_is_complete_with_its_report(tmp_path: Path) -> None:
    (tmp_path / "x.report.json").write_text(json.dumps({"fingerprint": "f"}))
    assert find_place(tmp_path, "x", "f", resume=True, decodes=False) == (tmp_path / "x.mp4", True)
    assert find_place(tmp_path, "x", "f", resume=True) == (tmp_path / "x-2.mp4", False)

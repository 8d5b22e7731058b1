"""Places of videos: good names, nothing overwritten, and what is complete found again."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from adaspa_cli.jobs.places import (
    ClaimedPlace,
    claim_path,
    claim_place,
    find_place,
    latents_path,
    report_path,
    video_name,
)
from tests.reports import small_report


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
    report(folder, name, fingerprint, {"file": f"{name}.mp4"})


def report(folder: Path, name: str, fingerprint: str, video: dict[str, Any], **more: Any) -> None:
    """A report, as far as places are found by it."""
    content = small_report() | more | {"fingerprint": fingerprint}
    content["video"] |= video
    (folder / f"{name}.report.json").write_text(json.dumps(content))


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


def test_resume_finds_what_is_complete_where_those_before_are_gone(tmp_path: Path) -> None:
    finish(tmp_path, "x-3", "f")
    assert find_place(tmp_path, "x", "f", resume=True) == (tmp_path / "x-3.mp4", True)
    assert find_place(tmp_path, "x", "f", resume=False) == (tmp_path / "x.mp4", False)
    assert find_place(tmp_path, "x", "other", resume=True) == (tmp_path / "x.mp4", False)
    taken = [tmp_path / "x-3.mp4"]
    assert find_place(tmp_path, "x", "f", resume=True, taken=taken) == (tmp_path / "x.mp4", False)


def test_resume_does_not_give_one_video_to_two_jobs(tmp_path: Path) -> None:
    finish(tmp_path, "x", "f")
    taken = [tmp_path / "x.mp4"]
    assert find_place(tmp_path, "x", "f", resume=True, taken=taken) == (tmp_path / "x-2.mp4", False)


@pytest.mark.parametrize("left_over", ["video", "report", "broken report", "list report"])
def test_what_is_incomplete_is_neither_skipped_nor_overwritten(tmp_path: Path, left_over: str) -> None:
    if left_over != "report":
        (tmp_path / "x.mp4").touch()
    contents = {
        "report": json.dumps(small_report()),
        "broken report": '{"finger',
        "list report": "[]",
    }
    if left_over in contents:
        (tmp_path / "x.report.json").write_text(contents[left_over])
    assert find_place(tmp_path, "x", "f", resume=True) == (tmp_path / "x-2.mp4", False)


def test_the_report_lies_beside_its_video() -> None:
    assert report_path(Path("a/x-2.mp4")) == Path("a/x-2.report.json")


def test_a_run_that_ends_in_latents_is_complete_with_what_its_report_names(tmp_path: Path) -> None:
    report(tmp_path, "x", "f", {"file": None})  # of random weights, or of an earlier version
    assert find_place(tmp_path, "x", "f", resume=True) == (tmp_path / "x.mp4", True)
    report(tmp_path, "x", "f", {"file": None}, latents="x.latents.safetensors")
    assert find_place(tmp_path, "x", "f", resume=True) == (tmp_path / "x-2.mp4", False)
    latents_path(tmp_path / "x.mp4").touch()
    assert find_place(tmp_path, "x", "f", resume=True) == (tmp_path / "x.mp4", True)


@pytest.mark.parametrize("left_over", ["x.mp4", "x.lossless.mkv", "x.latents.safetensors", "x.report.json"])
def test_nothing_that_is_there_is_written_over(tmp_path: Path, left_over: str) -> None:
    (tmp_path / left_over).touch()
    assert find_place(tmp_path, "x", "f", resume=False) == (tmp_path / "x-2.mp4", False)


def claim(place: Path, fingerprint: str = "f", *, resume: bool = True) -> ClaimedPlace | None:
    return claim_place(place, "x", fingerprint, resume=resume)


def test_a_claimed_name_goes_to_one_process_alone(tmp_path: Path) -> None:
    place = tmp_path / "x.mp4"
    first = claim(place, resume=False)
    second = claim(place, resume=False)
    assert first is not None
    assert second is not None
    assert (first.video, second.video) == (place, tmp_path / "x-2.mp4")
    with first, second:
        assert claim(place) is None, "who shares the work leaves it to the process that is at it"
        other = claim(place, "other settings")
        assert other is not None
        assert other.video == tmp_path / "x-3.mp4"
        other.give_back()
    assert list(tmp_path.iterdir()) == []


def test_what_another_process_has_made_since_is_not_made_again(tmp_path: Path) -> None:
    finish(tmp_path, "x", "f")
    assert claim(tmp_path / "x.mp4") is None
    again = claim(tmp_path / "x.mp4", resume=False)
    assert again is not None
    assert again.video == tmp_path / "x-2.mp4"


def test_what_was_begun_with_the_same_settings_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "x.mp4"
    names = ("x.mp4", "x.lossless.mkv", "x.partial12.mp4", "x.report.partial12.json", "x-2.partial12.mp4", "xy.mp4")
    for name in names:
        (tmp_path / name).touch()
    claim_path(place).write_text("f\n")  # as a process leaves it that was killed
    assert find_place(tmp_path, "x", "f", resume=True) == (place, False)
    assert find_place(tmp_path, "x", "f", resume=False) == (tmp_path / "x-2.mp4", False)
    assert find_place(tmp_path, "x", "other", resume=True) == (tmp_path / "x-2.mp4", False)
    begun = claim(place)
    assert begun is not None
    assert begun.begun
    with begun:
        begun.clear()
    assert {path.name for path in tmp_path.iterdir()} == {"x-2.partial12.mp4", "xy.mp4"}

"""Judging a folder of videos: drawn ones are right, and a wrong one is named."""

import json
import sys
from pathlib import Path

import pytest

from adaspa_cli.files.videos import write_video
from adaspa_cli.jobs.places import report_path
from scripts.judge_videos import main
from scripts.train_tiny.captions import held_out_scenes, standard_caption
from scripts.train_tiny.clips import draw, plan_scenes, to_uint8


def write(folder: Path, name: str, drawn: int, prompt: str) -> None:
    clip, _ = draw(plan_scenes([held_out_scenes()[drawn]], seed=1), 17, 96, 96, "cpu")
    write_video(folder / f"{name}.mp4", to_uint8(clip)[0].numpy(), fps=8)
    report_path(folder / f"{name}.mp4").write_text(json.dumps({"prompt": prompt}))


def test_right_and_wrong_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = [standard_caption(scene) for scene in held_out_scenes()]
    write(tmp_path, "right", 0, captions[0])
    write(tmp_path, "wrong", 8, captions[0])  # moves right where left was asked for
    monkeypatch.setattr(sys, "argv", ["judge_videos", str(tmp_path)])
    main()
    wrong, summary = capsys.readouterr().out.splitlines()
    assert wrong.startswith(f"{captions[0]}: ")
    assert "motion right" in wrong
    assert "2 videos" in summary
    assert "motion 1" in summary


def test_an_unknown_prompt_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "other", 0, "a cat")
    monkeypatch.setattr(sys, "argv", ["judge_videos", str(tmp_path)])
    with pytest.raises(SystemExit, match="'a cat' is no held-out caption"):
        main()

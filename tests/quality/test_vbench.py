"""VBench as a command of its own: what it is called with, and what its results become."""

import os
import stat
import sys
from pathlib import Path

import pytest

from adaspa_cli.quality import vbench

SCRIPT = """#!{python}
import json, sys
from pathlib import Path
arguments = sys.argv[1:]
given = dict(zip(arguments[1::2], arguments[2::2]))
assert arguments[0] == "evaluate" and given["--mode"] == "custom_input"
videos = sorted(Path(given["--videos_path"]).iterdir(), reverse=True)
assert all(video.read_bytes() for video in videos)
marks = {{"imaging_quality": 50.0, "dynamic_degree": True}}
entries = lambda d: [{{"video_path": str(v), "video_results": marks.get(d, 0.1 * (1 + int(v.stem)))}} for v in videos]
found = {{d: [0.5, entries(d)] for d in given["--dimension"].split()}}
Path(given["--output_path"]).mkdir()
Path(given["--output_path"], "results_now_eval_results.json").write_text(json.dumps(found))
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a command named vbench on the path, and nothing else."""
    command = folder / "vbench"
    command.write_text(script)
    command.chmod(command.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_scores_come_back_by_video_from_0_to_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, SCRIPT.format(python=sys.executable))
    videos = [tmp_path / name for name in ("it's $(a) name.mp4", "b.mp4")]
    for video in videos:
        video.write_bytes(b"video")
    first, second = vbench.score(videos)
    assert set(first) == set(second) == set(vbench.DIMENSIONS)
    assert (first["motion_smoothness"], second["motion_smoothness"]) == (pytest.approx(0.1), pytest.approx(0.2))
    assert (first["imaging_quality"], first["dynamic_degree"]) == (0.5, 1.0)


def test_without_the_command_the_reason_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(vbench.VBenchError, match="no command `vbench` on the path"):
        vbench.score([])


def test_a_command_that_gives_no_scores_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "#!/bin/sh\necho no weights >&2\n")
    with pytest.raises(vbench.VBenchError, match="vbench gave no scores; it said: no weights"):
        vbench.score([])

"""``adaspa visualize`` as its users see it: results, messages, exit codes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from adaspa_cli.app import app
from tests.browser import Browser, check_readable
from tests.pipelines import PROMPT, small_run


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def run(hunyuan_folder: Path, tmp_path: Path) -> Any:
    """Visualize a small model into ``tmp_path / "out"``."""

    def visualize(*arguments: str) -> Result:
        settings = small_run(hunyuan_folder, tmp_path / "out")
        named = {key: settings.pop(key) for key in ("model", "out", "steps", "sparsity", "device")}
        del settings["prompt"]
        flags = [part for key, value in named.items() for part in (f"--{key}", str(value))]
        for key, value in settings.items():
            flags += ["--set", f"{key}={json.dumps(value)}"]
        return CliRunner().invoke(app, ["visualize", "-p", PROMPT, *flags, *arguments])

    return visualize


def test_a_folder_of_pictures_is_made_and_its_page_named(run: Any, tmp_path: Path) -> None:
    result = run("--at-layers", "1", "--at-heads", "0", "--query", "1,2,3")
    assert result.exit_code == 0, result.output
    page = tmp_path / "out" / "a-red-circle-moves-left-on-a-blue-background-seed0" / "index.html"
    assert result.stdout.strip() == str(page)
    names = {path.name for path in page.parent.iterdir()}
    assert {"index.html", "data.json", "layer1-head0.png", "query-layer1-head0.png"} < names


def test_the_page_is_readable_and_another_token_can_be_asked(run: Any, browser: Browser) -> None:
    result = run("--json", "--method", "adaspa-plus", "--at-steps", "1", "--at-layers", "0", "--pixels", "8")
    page = Path(json.loads(result.stdout)["page"]).as_uri()
    check_readable(browser, page)
    with browser.tab(page) as tab:
        before = tab.wait("document.getElementById('says').textContent")
        tab.evaluate("document.getElementById('frames').focus()")
        tab.press("ArrowLeft")
        tab.wait(f"document.getElementById('says').textContent !== {json.dumps(before)}")
        assert tab.errors == []


def test_json_names_the_files(run: Any) -> None:
    result = run("--json", "--quiet", "--at-steps", "all", "--at-layers", "0", "--pixels", "8")
    assert result.stderr == ""
    told = json.loads(result.stdout)
    assert Path(told["page"]).is_file()
    assert all(Path(file).is_file() for file in told["files"])
    data = json.loads((Path(told["page"]).parent / "data.json").read_text())
    assert data["choice"]["steps"] == [0, 1, 2, 3]
    assert data["choice"]["reference"] == 1  # the first search step
    assert data["choice"]["heads"] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--at-layers", "4"), "no layer 4"),
        (("--at-heads", "7"), "no head 7"),
        (("--at-steps", "4"), "there is no step 4"),
        (("--at-steps", "1,x"), "--at-steps takes comma-separated whole numbers .*, got '1,x'"),
        (("--at-layers", ""), "--at-layers takes comma-separated whole numbers"),
        (("--at-heads", "-1"), "--at-heads takes comma-separated whole numbers"),
        (("--query", "1,2"), "--query takes FRAME,Y,X"),
        (("--query", "1,-2,0"), "--query takes FRAME,Y,X"),
        (("--query", "9,0,0"), "query 9,0,0 is outside the video of 2 x 4 x 6 tokens"),
        (("--set", "method=minference"), "draws the masks of adaspa, not of minference"),
        (("--set", "masks=cat.safetensors"), "visualize searches the masks that it shows"),
        (("--set", "cache=adacache"), "without cache 'adacache'"),
        (("--set", "sparsity"), "--set takes KEY=VALUE"),
        (("--set", "height=33"), "height must be a multiple of 16"),
        (("--set", "hight=32"), "unknown key 'hight'"),
        (("--prompts", "/nowhere.txt"), "cannot read prompts"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    run: Any, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert re.search(message, errors[0]), errors[0]
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_nothing(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adaspa_cli.visual.write.page", press)  # all files but the page are written by then
    result = run("--at-layers", "0", "--at-heads", "0")
    assert result.exit_code == 130
    assert "nothing was written" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []

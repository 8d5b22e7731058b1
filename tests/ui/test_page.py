"""The page in a browser, from a server that is started as a user would: type a prompt, get a video."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adaspa_cli.app import app
from adaspa_cli.commands import ui
from adaspa_cli.errors import ConfigError
from adaspa_cli.files.typed_json import from_json
from adaspa_cli.files.videos import read_frames
from adaspa_cli.jobs.write import Made
from adaspa_cli.report.schema import Report
from adaspa_cli.ui.form import Start, Wanted
from adaspa_cli.ui.page import Page
from adaspa_cli.ui.progress import StoppedError
from adaspa_cli.ui.studio import Run, Studio
from tests.browser import Browser, Tab
from tests.reports import small_report

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="needs adaspa[ui]")
SMALLEST = ("--height", "96", "--width", "96", "--frames", "9")
NO_PROMPT = ("tiny", "full", "", 0, 4, 96, 96, 9, False, 0.0, None, False)  # of the form
SECONDS = 60.0  # for anything that takes a few, on a busy machine


class Server:
    """``adaspa ui`` in a process of its own."""

    def __init__(self, folder: Path, steps: int = 4) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.out, self._said = folder / "videos", folder / "said"
        self.out.mkdir()
        command = [sys.executable, "-m", "adaspa_cli", "ui", "--json", "--port", str(self.port), "--out", str(self.out)]
        command += [*SMALLEST, "--steps", str(steps)]
        with self._said.open("w") as said:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        assert self.process.stdout is not None
        self.about = json.loads(self.process.stdout.readline() or self.said())
        self.url = str(self.about["url"])

    def said(self) -> str:
        return self._said.read_text(encoding="utf-8")

    def close(self) -> None:
        """Press Ctrl-C, and wait for the end."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(SECONDS)


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    """The servers of a process, of which the last may be at work; a start takes seconds."""
    started: list[Server] = []
    yield started
    for one in started:
        if one.process.poll() is None:
            one.close()


@pytest.fixture
def server(servers: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    if not servers or servers[-1].process.poll() is not None:
        servers.append(Server(tmp_path_factory.mktemp("page")))
    return servers[-1]


# The stream of answers has ended, and what it said is drawn.
ANSWERED = """
performance.getEntriesByType("resource").some((one) => one.name.includes("/queue/data") && one.responseEnd > 0) &&
new Promise((drawn) => requestAnimationFrame(() => setTimeout(() => drawn(true), 100)))
"""


def gradio_skip() -> object:
    """What leaves a part of the page as it is."""
    from gradio import skip

    return skip()


def there(selector: str) -> str:
    return f"!!document.querySelector({json.dumps(selector)})"


def opened(tab: Tab) -> None:
    tab.wait(there("#go"), SECONDS)
    tab.wait(there("#prompt textarea"), SECONDS)
    tab.wait(ANSWERED, SECONDS)  # later it would take the place of what a click has shown


@needs_gradio
def test_the_page_before_the_first_video(browser: Browser, server: Server) -> None:
    """The answer to the event of loading leaves the buttons and the right side as they are."""
    with browser.tab(server.url) as tab:
        opened(tab)
        assert tab.evaluate("document.querySelector('#go').innerText") == "Make the video"
        assert tab.evaluate("document.querySelector('#result').innerText") == "The video appears here."
        assert "a red circle" in tab.evaluate("document.querySelector('#prompt textarea').placeholder")
        assert "triangle" in tab.evaluate("document.querySelector('#words').innerText")  # which is not folded
        assert tab.evaluate(there("#sparsity input:disabled"))  # the method has a schedule of its own
        tab.click("#own input")
        tab.wait(there("#sparsity input:enabled"), SECONDS)
        assert tab.errors == []


@needs_gradio
def test_a_prompt_becomes_a_video(browser: Browser, server: Server) -> None:
    with browser.tab(server.url) as tab:
        opened(tab)
        tab.write("#prompt textarea", "a red circle moves left on a blue background")
        tab.click("#go")
        tab.wait(there(".adaspa-steps"), SECONDS)
        assert "was not trained on frames 9" in tab.evaluate("document.querySelector('#result').innerText")
        tab.wait(there("#result video"), SECONDS)
        assert tab.wait("document.querySelector('#result video').videoWidth", SECONDS) == 96
        assert "adaspa-plus, γ 0.4 rising to 0.95" in tab.evaluate("document.querySelector('figcaption').innerText")
        tab.wait("document.querySelector('iframe')?.contentDocument?.title.includes('red circle')", SECONDS)
        (video,) = server.out.glob("*.mp4")
        assert read_frames(video).shape == (9, 96, 96, 3)
        assert tab.evaluate("document.querySelector('figcaption a').download") == video.name
        tab.go(server.url)  # the last video is there when the page is opened again
        tab.wait(there("#result video"), SECONDS)
        assert tab.errors == []
        assert [request for request in tab.requests if not request.startswith(server.url)] == []  # all from here


@needs_gradio
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)], ids=["wide", "phone, dark"])
def test_it_is_readable(browser: Browser, server: Server, width: int, dark: bool) -> None:
    with browser.tab(server.url, width=width, dark=dark) as tab:
        opened(tab)
        tab.click("#go")  # without a prompt
        tab.wait(there(".adaspa-error"), SECONDS)
        assert "the prompt is empty" in tab.evaluate("document.querySelector('.adaspa-error').innerText")
        assert tab.too_wide() == []
        assert tab.faint() == []
        assert tab.errors == []


@needs_gradio
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)], ids=["laptop", "phone"])
def test_the_button_is_seen_without_scrolling(browser: Browser, server: Server, width: int, height: int) -> None:
    with browser.tab(server.url, width=width, height=height) as tab:
        opened(tab)
        low = "document.querySelector('#go').getBoundingClientRect().bottom"
        assert 0 < tab.evaluate(low) < height
        assert tab.evaluate("document.querySelector('#words').getBoundingClientRect().bottom") < height


@needs_gradio
def test_a_click_that_is_faster_than_the_loading_of_the_page_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its error nor its run gives way to the last video, which a page shows when it is opened."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    page = Page(Start({}), Studio(Start({}), lambda _error: None))
    last = Run(Wanted("tiny", "full", "a circle", 0, 4, 96, 96, 9))
    last.end(StoppedError())
    page._studio.done.append(last)
    shown, *_ = list(page._generate("tab", *NO_PROMPT))[-1]
    assert "the prompt is empty" in shown
    assert list(page._rejoin("tab")) == [(gradio_skip(),) * 5]
    assert "stopped" in list(page._rejoin("another"))[-1][0]


@needs_gradio
def test_a_server_that_runs_for_weeks_does_not_remember_all_its_tabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    page = Page(Start({}), Studio(Start({}), lambda _error: None))
    page._studio.done.append(Run(None))
    for number in range(500):
        list(page._generate(f"tab {number}", *NO_PROMPT))
    assert list(page._rejoin("tab 499")) == [(gradio_skip(),) * 5]
    assert len(page._asked) + len(page._runs) <= 100


@needs_gradio
def test_another_model_changes_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    page = Page(Start({}), Studio(Start({}), lambda _error: None))
    *sizes, own, sparsity, image, model, words, prompt = page._offer("hunyuan-i2v", "adaspa")
    assert sizes == [50, 720, 1280, 129]
    assert (own["value"], own["visible"]) == (False, False)
    assert (sparsity["value"], sparsity["visible"], sparsity["interactive"]) == (0.8, True, True)
    assert image["visible"]
    assert "hunyuanvideo-community/HunyuanVideo-I2V" in model["info"]
    assert not words["visible"]
    assert "A cat" in prompt["placeholder"]
    assert not any(field["visible"] for field in page._offer_method("tiny", "full"))


@needs_gradio
def test_the_schedule_or_one_sparsity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slider counts where the schedule is off, also at the value that it begins with."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    page = Page(Start({}), Studio(Start({}), lambda _error: None))
    own, sparsity = page._offer_method("tiny", "adaspa-plus")
    assert (own["value"], own["visible"], sparsity["interactive"]) == (True, True, False)
    assert "γ 0.4 rising to 0.95" in own["info"]

    def sparsity_of(method: str, own: bool, value: float) -> float | None:
        return page._wanted("tiny", method, "a circle", 0, 4, 96, 96, 9, own, value, None, False).sparsity

    assert sparsity_of("adaspa-plus", True, 0.95) is None
    assert sparsity_of("adaspa-plus", False, 0.95) == 0.95
    assert sparsity_of("adaspa-plus", False, 0.94) == 0.94
    assert sparsity_of("adaspa", False, 0.8) is None
    assert sparsity_of("adaspa", False, 0.7) == 0.7
    assert sparsity_of("full", False, 0.0) is None


@needs_gradio
@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (-1, r"^seed must be .* got \[-1\]"),
        (1.5, "^seed must be a whole number"),
        (None, "^seed must be a whole number"),
        (2**53, "^seed must be below 2\\^53"),
    ],
)
def test_a_number_of_no_use_is_named(seed: float | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not rounded, and not refused by gradio, which does not know the name of the setting."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    start = Start({})
    page = Page(start, Studio(start, lambda _error: None))
    (field,) = (one for one in page.blocks.blocks.values() if getattr(one, "elem_id", None) == "seed")
    value = field.preprocess(seed)
    with pytest.raises(ConfigError, match=message):
        start.run(page._wanted("tiny", "full", "a circle", value, 4, 96, 96, 9, True, 0.0, None, False))


@needs_gradio
def test_it_serves_this_machine_and_what_it_made(server: Server) -> None:
    assert server.about == {"url": f"http://127.0.0.1:{server.port}/", "share_url": None}
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line]
    assert f"0100007F:{server.port:04X}" in listening
    assert f"00000000:{server.port:04X}" not in listening
    (server.out / "other.mp4").write_bytes(b"not shown by the page")
    for name in ("other.mp4", "..%2Fsaid", "none"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.url}made/{name}", timeout=SECONDS)
        assert refused.value.code == 404
    for header in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(server.url, headers=header), timeout=SECONDS)
        assert refused.value.code == 403


@needs_gradio
def test_runs_of_one_tab_and_videos_that_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    page = Page(Start({}), Studio(Start({}), lambda _error: None))
    first, second = (Run(Wanted("tiny", "full", "a circle", 0, 4, 96, 96, 9)) for _ in range(2))
    older = page._follow("tab", first)
    next(older)
    newer = page._follow("tab", second)
    assert "adaspa-progress" in next(newer)[0]
    assert list(older) == []  # the tab shows the later run
    page._stop("tab")
    assert isinstance(second.error, StoppedError)
    assert first.error is None
    third = Run(second.wanted)
    page._studio.at_work = third
    again = page._rejoin("again")  # the page is opened again, and Stop of that tab is for the run that it shows
    next(again)
    page._stop("again")
    with pytest.raises(StoppedError):
        third.progress.check()
    made = tmp_path / "a.mp4"
    report = from_json(Report, small_report())
    page._studio.done.append(Run(None, made=[Made(report, made)]))
    assert page.content("a.mp4") is None
    made.touch()
    assert page.content("a.mp4") == made


@needs_gradio
def test_ctrl_c_ends_it_while_it_works(browser: Browser, servers: list[Server], tmp_path: Path) -> None:
    server = Server(tmp_path, steps=500)  # more than it gets to
    servers.append(server)
    with browser.tab(server.url) as tab:
        opened(tab)
        tab.write("#prompt textarea", "a green star grows on a black background")
        tab.click("#go")
        tab.wait(there(".adaspa-steps"), SECONDS)
        tab.go(server.url)  # which does not end it
        tab.wait(there(".adaspa-steps"), SECONDS)
        assert tab.evaluate("document.querySelector('#stop').innerText") == "Stop"
        server.close()
    assert server.process.returncode == 130
    assert server.said().splitlines()[-1] == "closed"
    assert "Traceback" not in server.said()
    assert not list(server.out.glob("*partial*"))
    assert not list(server.out.glob("a-green-star*.mp4"))


def test_without_gradio_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "find_spec", lambda _name: None)
    result = CliRunner().invoke(app, ["ui"])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error: adaspa ui needs gradio, which is not installed",
        "  try: pip install 'adaspa[ui]'",
    ]


def test_nothing_heavy_is_imported_for_the_other_commands() -> None:
    code = "import sys; import adaspa_cli.app; assert not {'gradio', 'torch', 'yaml'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], env=os.environ, check=True, timeout=SECONDS)

"""A headless Chromium for tests: one process, driven over its DevTools pipe; nothing but the standard library.

Usage, with the fixture ``browser`` of ``tests/conftest.py``, which skips where no Chromium is installed::

    with browser.tab(path.as_uri(), width=390, dark=True) as tab:
        assert tab.evaluate("document.title") == "..."
        assert tab.too_wide() == []
        assert tab.errors == []

The protocol: https://chromedevtools.github.io/devtools-protocol/.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# --no-sandbox: containers and root have no user namespaces. No background traffic: tests run without a network.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--no-first-run",
    "--mute-audio",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
KEYS = {  # key: (code, key code, text)
    "Enter": ("Enter", 13, "\r"),
    "Tab": ("Tab", 9, ""),
    "Escape": ("Escape", 27, ""),
    "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    "ArrowRight": ("ArrowRight", 39, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "Home": ("Home", 36, ""),
    "End": ("End", 35, ""),
    " ": ("Space", 32, " "),
}
SECONDS = 20.0  # for anything that a page does, before a test gives up

# What sticks out at the right of the window, and of nothing that scrolls or hides it.
_TOO_WIDE = """
(() => {
  const wide = document.documentElement.clientWidth;
  const inside = (node) => {
    for (let up = node.parentElement; up && up !== document.body; up = up.parentElement) {
      if (getComputedStyle(up).overflowX !== "visible") return true;
    }
    return false;
  };
  const found = [...document.body.querySelectorAll("*")]
    .filter((node) => node.getBoundingClientRect().right > wide + 1 && node.getClientRects().length && !inside(node))
    .map((node) => `${node.tagName.toLowerCase()}.${node.getAttribute("class") || ""}: ` +
      `${Math.round(node.getBoundingClientRect().right)} of ${wide} px`);
  if (document.documentElement.scrollWidth > wide) found.push(`page: ${document.documentElement.scrollWidth} px`);
  return found;
})()
"""

# Texts whose colour is too near to the background that they stand on (WCAG 2.2, 1.4.3: at least 4.5, large text 3).
_FAINT = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const ground = (node) => {
    const layers = [];
    for (let up = node; up; up = up.parentElement) {
      const style = getComputedStyle(up);
      if (style.backgroundImage !== "none") return null;
      layers.push(rgba(style.backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    const base = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18, 1] : [255, 255, 255, 1];
    return layers.reduceRight((under, top) => over(top, under), base);
  };
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, part, i) => {
    const v = c[i] / 255;
    return sum + part * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  }, 0);
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility({ opacityProperty: true, visibilityProperty: true })) {
      continue;
    }
    if (["OPTION", "SCRIPT", "STYLE", "NOSCRIPT"].includes(node.tagName) || node.closest("svg, :disabled")) continue;
    const under = ground(node);
    if (!under) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(over(rgba(style.color), under)), light(under)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) {
      found.add(`${walker.currentNode.data.trim().slice(0, 40)}: ${ratio.toFixed(2)} (${node.tagName.toLowerCase()})`);
    }
  }
  return [...found];
})()
"""


class BrowserError(Exception):
    """The browser refused a command, or a page threw."""


def chromium() -> str | None:
    """Path of an installed Chromium or Chrome."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def _pipe() -> tuple[int, int]:
    """Ends of a pipe with numbers above those that the browser gets."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]


class Browser:
    """A running Chromium with a profile of its own; a context manager that ends it."""

    def __init__(self, executable: str) -> None:
        self._profile = tempfile.mkdtemp(prefix="adaspa-chromium-")
        self._last = 0
        self._buffer = b""
        self._tabs: dict[str, Tab] = {}
        told, self._write = _pipe()
        self._read, tells = _pipe()
        actions = [
            (os.POSIX_SPAWN_DUP2, told, 3),
            (os.POSIX_SPAWN_DUP2, tells, 4),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ]
        arguments = [executable, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self._process = os.posix_spawn(executable, arguments, os.environ, file_actions=actions)
        os.close(told)
        os.close(tells)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrowserError):
            self.send("Browser.close")
        os.close(self._write)
        os.close(self._read)
        end = time.monotonic() + SECONDS
        while os.waitpid(self._process, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.kill(self._process, signal.SIGKILL)
            time.sleep(0.02)
        shutil.rmtree(self._profile, ignore_errors=True)

    @contextlib.contextmanager
    def tab(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Tab]:
        """A tab on a page that has loaded, in a window of so many CSS pixels; closed at the end of the block."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = self._tabs[session] = Tab(self, session)
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                tab.send(f"{domain}.enable")
            tab.look(width=width, height=height, dark=dark)
            tab.go(url)
            yield tab
        finally:
            self.send("Target.closeTarget", targetId=target)
            del self._tabs[session]

    def send(self, method: str, session: str | None = None, **arguments: Any) -> dict[str, Any]:
        """Send a command, and wait for its answer.

        Raises:
            BrowserError: the browser refused it, ended, or did not answer.
        """
        self._last += 1
        own = self._last
        message = {"id": own, "method": method, "params": arguments} | ({"sessionId": session} if session else {})
        data = json.dumps(message).encode() + b"\0"
        try:
            while data:
                data = data[os.write(self._write, data) :]
        except BrokenPipeError as error:
            raise BrowserError("the browser has ended") from error
        end = time.monotonic() + SECONDS
        while True:
            answer = self.hear(end - time.monotonic())
            if answer is None:
                raise BrowserError(f"no answer to {method} in {SECONDS:.0f} s")
            if answer.get("id") == own:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])

    def hear(self, seconds: float) -> dict[str, Any] | None:
        """The next message of the browser; events are given to their tab on the way. None if there is none in time."""
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._read], [], [], left)[0]:
                return None
            piece = os.read(self._read, 1 << 20)
            if not piece:
                raise BrowserError("the browser has ended")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        tab = self._tabs.get(message.get("sessionId", ""))
        if tab is not None and "method" in message:
            tab.happened(message["method"], message["params"])
        return message


class Tab:
    """A page in the browser.

    Attributes:
        errors: exceptions, console errors and warnings, and what failed to load, in words.
        requests: addresses that were asked for, without data: and blob: ones.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self._loaded = False
        self.errors: list[str] = []
        self.requests: list[str] = []

    def send(self, method: str, **arguments: Any) -> dict[str, Any]:
        """A command of the protocol, to this tab."""
        return self._browser.send(method, self._session, **arguments)

    def happened(self, method: str, about: dict[str, Any]) -> None:
        """Keep what an event says."""
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.errors.append(_thrown(about["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(part.get("value", part.get("description"))) for part in about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{about['entry']['text']} {about['entry'].get('url', '')[:200]}")
        elif method == "Network.requestWillBeSent":
            url = about["request"]["url"]
            if not url.startswith(("data:", "blob:")):
                self.requests.append(url)

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Give the window a size in CSS pixels, and the system a colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def go(self, url: str) -> None:
        """Load a page, and wait until it has loaded."""
        self._loaded = False
        failed = self.send("Page.navigate", url=url).get("errorText")
        if failed:
            raise BrowserError(f"{url}: {failed}")
        end = time.monotonic() + SECONDS
        while not self._loaded:
            if self._browser.hear(end - time.monotonic()) is None:
                raise BrowserError(f"{url} did not load in {SECONDS:.0f} s")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression as JSON has it; of a promise, what it comes to.

        Raises:
            BrowserError: it throws.
        """
        found = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in found:
            raise BrowserError(_thrown(found["exceptionDetails"]))
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = SECONDS) -> Any:
        """Wait until an expression is true, also on a page that the tab is going to; returns its value."""
        end = time.monotonic() + seconds
        while not (value := self._evaluate_anywhere(expression)):
            if time.monotonic() > end:
                raise BrowserError(f"not true in {seconds:.0f} s: {expression}; errors of the page: {self.errors}")
            time.sleep(0.03)
        return value

    def _evaluate_anywhere(self, expression: str) -> Any:
        """The value of an expression; None while the tab goes from one page to another."""
        try:
            return self.evaluate(expression)
        except BrowserError as error:
            if "Runtime.evaluate: " not in str(error):
                raise
            return None

    def click(self, selector: str, *, x: float = 0.5, y: float = 0.5) -> None:
        """Press the mouse on an element, ``x`` and ``y`` shares of its size from its top left."""
        where = self._place(selector, x, y)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **where)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    def hover(self, selector: str) -> None:
        """Put the mouse over an element."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **self._place(selector, 0.5, 0.5))

    def _place(self, selector: str, x: float, y: float) -> dict[str, float]:
        found = self.evaluate(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)}); if (!node) return null;"
            "node.scrollIntoView({ block: 'center', behavior: 'instant' });"
            "const box = node.getBoundingClientRect(); return [box.left, box.top, box.width, box.height]; })()"
        )
        if found is None:
            raise BrowserError(f"there is no {selector}")
        left, top, width, height = found
        return {"x": left + x * width, "y": top + y * height}

    def press(self, key: str) -> None:
        """Press a key: a letter, or one of KEYS."""
        code, number, text = KEYS[key] if key in KEYS else (f"Key{key.upper()}", ord(key.upper()), key)
        about = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        self.send("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    def write(self, selector: str, text: str) -> None:
        """Click a field and type into it."""
        self.click(selector)
        self.send("Input.insertText", text=text)

    def picture(self) -> bytes:
        """What the window shows, as a PNG file; of what lies outside it videos would not be drawn."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def too_wide(self) -> list[str]:
        """Elements that stick out of the window at the right, in words; those within a box that scrolls do not."""
        return list(self.evaluate(_TOO_WIDE))

    def faint(self) -> list[str]:
        """Texts with too little contrast to what they stand on, in words, by WCAG 2.2 (level AA)."""
        return list(self.evaluate(_FAINT))


def check_readable(browser: Browser, url: str) -> None:
    """Check a page on wide and narrow windows, light and dark, all of it open: nothing sticks out, nothing is faint.

    Nor does it throw, or load anything but files.
    """
    with browser.tab(url) as tab:
        tab.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        grounds = set()
        for width, dark in itertools.product((1280, 390), (False, True)):
            tab.look(width=width, dark=dark)
            assert tab.too_wide() == [], (width, dark)
            assert tab.faint() == [], (width, dark)
            grounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 2
        unnamed = "[...document.querySelectorAll('img:not([alt]), video:not([aria-label]):not([tabindex])')].length"
        assert tab.evaluate(unnamed) == 0
        assert tab.errors == []
        assert all(request.startswith("file:") for request in tab.requests)


def _thrown(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])

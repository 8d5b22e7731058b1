"""The server of the page: on this machine alone, and silent: gradio would report its use, and look for new versions."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from adaspa_cli.errors import UsageError
from adaspa_cli.ui import panels
from adaspa_cli.ui.guard import Guard
from adaspa_cli.ui.page import Page

HOST = "127.0.0.1"
_FONTS = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # gradio's own come from Google
_SILENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_NUM_WORKERS": "0",
}


@contextlib.contextmanager
def silent(environment: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Make gradio silent, before it is imported, and keep its copies of pictures in a folder that goes at the end."""
    environment.update(_SILENT)
    for key in ("no_proxy", "NO_PROXY"):  # it asks itself whether it is there
        environment[key] = ",".join(filter(None, [environment.get(key, ""), HOST, "localhost"]))
    with tempfile.TemporaryDirectory(prefix="adaspa-ui-", ignore_cleanup_errors=True) as folder:
        environment["GRADIO_TEMP_DIR"] = folder
        yield


def serve(page: Page, *, port: int | None, share: bool) -> tuple[str, str | None]:
    """Serve the page from threads of their own; returns its address, and the public one with ``share``.

    Args:
        port: None takes the first free one from 7860 on.

    Raises:
        UsageError: the port is taken.
    """
    from starlette.middleware import Middleware

    try:
        with contextlib.redirect_stdout(sys.stderr):  # where gradio says what it could not do
            app, url, shared = page.blocks.queue(default_concurrency_limit=None, api_open=False).launch(
                server_name=HOST,
                server_port=port,
                share=share,
                quiet=True,
                prevent_thread_lock=True,
                inbrowser=False,
                theme=_theme(),
                css=(Path(__file__).parent / "style.css").read_text(encoding="utf-8"),
                footer_links=[],
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                run_history=False,
                enable_monitoring=False,
                app_kwargs=None if share else {"middleware": [Middleware(Guard)]},  # a public page has another name
            )
    except OSError as error:
        taken = "no port from 7860 on is free" if port is None else f"port {port} is taken"
        raise UsageError(taken, hint="choose another --port") from error
    _serve_files(app, page)
    return url, shared


def _theme() -> Any:
    """Readable in light and in dark, with fonts of this machine."""
    import gradio as gr

    plain = {"block_title_background_fill": "transparent", "block_title_padding": "0", "input_border_width": "1px"}
    light = {
        "body_text_color_subdued": "#55606e",
        "block_info_text_color": "#55606e",
        "input_border_color": "#b4bcc6",
        "input_placeholder_color": "#66717f",
        "checkbox_border_color": "#7b8591",
        "block_title_text_color": "#1d2530",
        "block_label_text_color": "#1d2530",
        "block_label_background_fill": "transparent",
        "button_primary_background_fill": "#2459a9",
        "button_primary_background_fill_hover": "#1d4a8d",
        "link_text_color": "#2459a9",
        "link_text_color_visited": "#2459a9",
    }
    dark = {
        "body_text_color_subdued": "#aab4c0",
        "block_info_text_color": "#aab4c0",
        "input_border_color": "#5b6673",
        "input_placeholder_color": "#a9b3bf",
        "checkbox_border_color": "#8d98a5",
        "block_title_text_color": "#e3e7ec",
        "block_label_text_color": "#e3e7ec",
        "block_label_background_fill": "transparent",
        "button_primary_background_fill": "#2459a9",
        "button_primary_background_fill_hover": "#1d4a8d",
        "link_text_color": "#9dc1f5",
        "link_text_color_visited": "#9dc1f5",
    }
    both = plain | {f"{key}_dark": value for key, value in plain.items() if key != "block_title_padding"}
    return gr.themes.Soft(primary_hue="blue", font=_FONTS[0], font_mono=_FONTS[1]).set(
        **both, **light, **{f"{key}_dark": value for key, value in dark.items()}
    )


def _serve_files(app: Any, page: Page) -> None:
    """Serve videos and reports that the page has shown, and nothing else."""
    from starlette.requests import Request
    from starlette.responses import FileResponse, HTMLResponse, Response
    from starlette.routing import Route

    async def made(request: Request) -> Response:
        content = page.content(request.path_params["name"])
        if content is None:
            return Response("no such file", status_code=404)
        if isinstance(content, Path):
            return FileResponse(content, media_type="video/mp4")
        return HTMLResponse(content)

    app.router.routes.insert(0, Route(f"{panels.FILES}/{{name}}", made))  # before those of gradio, which take all


def wait() -> None:
    """Until Ctrl-C."""
    threading.Event().wait()

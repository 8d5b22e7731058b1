"""``adaspa ui``: a page on this machine that makes videos."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Annotated

import typer
from rich.text import Text

from adaspa_cli import interrupts
from adaspa_cli.commands import options
from adaspa_cli.commands.command import command
from adaspa_cli.commands.settings import Given
from adaspa_cli.config.presets import DEFAULT_METHOD
from adaspa_cli.console import Console
from adaspa_cli.errors import UsageError


@command(
    *(options.METHOD_NAME.but(default=DEFAULT_METHOD), options.SPARSITY, options.SEED),
    *(options.STEPS, options.HEIGHT, options.WIDTH, options.FRAMES, options.FPS, options.GUIDANCE_SCALE),
    *(options.MODEL, options.WEIGHTS, options.DTYPE, options.DEVICE, options.ATTENTION_BACKEND, options.LINEAR),
    *(options.COMPILE, options.OFFLOAD, options.LORA, options.WEIGHTS_DTYPE, options.TRANSFORMER),
    *(options.VAE_TILING, options.VAE_FRAMEWISE, options.SET, options.OUT, options.CONFIG),
    interrupted="closed",
)
def ui(
    *,
    given: Given,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=1, max=65_535, rich_help_panel=options.OUTPUT, help="Port. (default: first free from 7860)"
        ),
    ] = None,
    share: Annotated[
        bool,
        typer.Option(
            "--share",
            rich_help_panel=options.OUTPUT,
            help="Also create a public address at Gradio's server: anyone who knows it can use this machine.",
        ),
    ] = False,
    console: Console,
) -> None:
    """Open a page on this machine that makes videos; Ctrl-C closes it.

    Flags preset the form. The page is served only to this machine, and the pipeline stays loaded.

    Example: adaspa ui --model tiny --out videos
    """
    if find_spec("gradio") is None:
        raise UsageError("adaspa ui needs gradio, which is not installed", hint="pip install 'adaspa[ui]'")
    from adaspa_cli.files.folders import check_folder
    from adaspa_cli.ui.form import Start
    from adaspa_cli.ui.page import Page
    from adaspa_cli.ui.serve import serve, silent, wait
    from adaspa_cli.ui.studio import Studio

    start = Start(given.settings(), given.file)
    start.check()  # before gradio is imported
    check_folder(start.out)
    console.note("starting ...")
    interrupts.unwind()
    studio = Studio(start, console.error)
    try:
        with silent():
            url, public = serve(Page(start, studio), port=port, share=share)
            console.result({"url": url, "share_url": public}, Text("\n".join(filter(None, (url, public)))))
            wait()
    except KeyboardInterrupt:
        interrupts.over()
        studio.close()
        console.interrupted("closed")
        sys.stdout.flush()
        os._exit(interrupts.EXIT_CODE)  # a step that is going on, and the server's threads, would be waited for

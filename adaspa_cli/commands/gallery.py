"""``adaspa gallery``: a contact sheet of the videos in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adaspa_cli.commands.command import command
from adaspa_cli.console import Console
from adaspa_cli.errors import AdaspaError


@command(panels=False, interrupted="interrupted; the gallery is as it was")
def gallery(
    *,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of videos; subfolders are included.")],
    console: Console,
) -> None:
    """Write FOLDER/index.html, one page with all videos of the folder, filters, and links to their pages.

    Hover over a video to play it. Filters and sorting use the reports next to the videos and need no server.

    Example: adaspa gallery videos
    """
    from adaspa_cli.gallery.page import write_gallery

    page, count = write_gallery(folder.expanduser(), console.note)
    console.result(
        {"page": str(page), "videos": count},
        f"{page}\n{count} {'video' if count == 1 else 'videos'}",
    )


def renew_gallery(console: Console, out: str) -> None:
    """Write the gallery of a folder after a batch. A failure is only noted, because the videos are complete."""
    from adaspa_cli.gallery.page import write_gallery

    try:
        page, _ = write_gallery(Path(out).expanduser(), console.note)
    except AdaspaError as error:
        console.note(f"no gallery: {error.message}")
    else:
        console.note(f"gallery: {page}")

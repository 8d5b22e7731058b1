"""``adaspa gallery``: a contact sheet of the videos in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adaspa_cli.commands.command import command
from adaspa_cli.console import Console


@command(panels=False, interrupted="interrupted; the gallery is as it was")
def gallery(
    *,
    folder: Annotated[Path, typer.Argument(help="Folder of videos; those in its subfolders are shown too.")],
    console: Console,
) -> None:
    """Write FOLDER/index.html: all videos of the folder on one page, with filters and links to their pages.

    Videos play under the mouse. Filters and sorting use the reports beside the videos, and need no server.

    Example: adaspa gallery videos
    """
    from adaspa_cli.gallery.page import write_gallery

    page, count = write_gallery(folder.expanduser(), console.note)
    console.result(
        {"page": str(page), "videos": count},
        f"{page}\n{count} {'video' if count == 1 else 'videos'}; open it in a browser",
    )

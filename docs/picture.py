"""Draw the lab's tmux session: ``python docs/picture.py docs/session.svg``.

It captures the real panes, with colours and borders, from a session that is 100 columns wide:
``tmux resize-window -t openstackoid -x 100 -y 40``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lab.tmux import SESSION, SOCKET_VARIABLE


def capture() -> list[tuple[str, list[str]]]:
    """The title and the lines of each pane of the session, from top to bottom.

    :raises subprocess.CalledProcessError: when there is no session.
    """
    panes = _tmux("list-panes", "-t", SESSION, "-F", "#{pane_id} #{@instance}")
    return [
        (title, _tmux("capture-pane", "-e", "-p", "-t", pane))
        for pane, title in (line.split(" ", 1) for line in panes)
    ]


def draw(panes: list[tuple[str, list[str]]], width: int = 100) -> str:
    """An SVG of *panes*, each below a border with its title; it loads nothing from elsewhere."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=width, file=nowhere)
        for title, lines in panes:
            console.print(f"─── {title} ".ljust(width, "─"), style="green", markup=False)
            for line in "\n".join(lines).rstrip().splitlines():
                console.print(Text.from_ansi(line), soft_wrap=True)
        picture = console.export_svg(title="./setup-env.py up")
    # rich names its own site in a comment, and sites to load fonts from.
    return re.sub(r" *<!--.*?-->\n|@font-face \{.*?\}", "", picture, flags=re.DOTALL)


def _tmux(*arguments: str) -> list[str]:
    socket = os.environ.get(SOCKET_VARIABLE)
    server = ["-L", socket] if socket else []
    done = subprocess.run(["tmux", *server, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw(capture()))

"""Draw the lab's tmux session, or a moment of a recording of ``demo``.

``python docs/picture.py docs/session.svg`` captures the real panes, with colours and borders, from
a session that is 100 columns wide: ``tmux resize-window -t openstackoid -x 100 -y 40``.
``python docs/picture.py docs/demo.svg demo.cast 42`` draws what the recording shows after 42
seconds.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lab.tmux import SESSION, SOCKET_VARIABLE


def capture() -> list[str]:
    """The lines of the session: each pane below a border with its title, from top to bottom.

    :raises subprocess.CalledProcessError: when there is no session.
    """
    socket = os.environ.get(SOCKET_VARIABLE)
    server = ["-L", socket] if socket else []
    lines = []
    for pane in _tmux(*server, "list-panes", "-t", SESSION, "-F", "#{pane_id} #{@instance}"):
        number, title = pane.split(" ", 1)
        lines.append(f"\x1b[32m{f'─── {title} '.ljust(100, '─')}\x1b[0m")
        shown = _tmux(*server, "capture-pane", "-e", "-p", "-t", number)
        lines += "\n".join(shown).rstrip().splitlines()
    return lines


def replay(recording: Path, seconds: float) -> list[str]:
    """The lines of the screen so many *seconds* after the beginning of an asciicast.

    tmux is the terminal: it shows what the recorded terminal was sent until then.
    """
    header, *events = map(json.loads, recording.read_text().splitlines())
    sent = "".join(text for moment, kind, text in events if kind == "o" and moment <= seconds)
    size = ("-x", str(header["width"]), "-y", str(header["height"]))
    server = ("-L", f"picture-{os.getpid()}")
    with tempfile.TemporaryDirectory() as directory:
        settings, stream = Path(directory, "tmux.conf"), Path(directory, "sent")
        settings.write_text("set -g status off\n")
        stream.write_text(sent)
        show = f"stty -opost -echo; cat {stream}; exec sleep 60"
        _tmux(*server, "-f", str(settings), "new-session", "-d", *size, show)
        try:
            while _tmux(*server, "list-panes", "-F", "#{pane_current_command}") != ["sleep"]:
                time.sleep(0.1)
            return _tmux(*server, "capture-pane", "-e", "-p")
        finally:
            _tmux(*server, "kill-server")


def draw(lines: list[str], title: str) -> str:
    """An SVG of *lines*, which have a terminal's colours; it loads nothing from elsewhere."""
    width = max(Text.from_ansi(line).cell_len for line in lines)
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=width, file=nowhere)
        for line in lines:
            console.print(Text.from_ansi(line), soft_wrap=True)
        picture = console.export_svg(title=title)
    # rich names its own site in a comment, and sites to load fonts from.
    return re.sub(r" *<!--.*?-->\n|@font-face \{.*?\}", "", picture, flags=re.DOTALL)


def _tmux(*arguments: str) -> list[str]:
    done = subprocess.run(["tmux", *arguments], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def main() -> None:
    """See the module's documentation."""
    match sys.argv[1:]:
        case [target]:
            picture = draw(capture(), "./setup-env.py up")
        case [target, recording, seconds]:
            picture = draw(replay(Path(recording), float(seconds)), "./setup-env.py demo")
        case _:
            sys.exit("usage: python docs/picture.py SVG [RECORDING SECONDS]")
    Path(target).write_text(picture)


if __name__ == "__main__":
    main()

"""Scripts by which shells complete the arguments of ``setup-env.py``.

They are click's own (https://click.palletsprojects.com/en/stable/shell-completion/). Only how they
call the program differs, since ``setup-env.py`` is not in the PATH: they call what the user types.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from lab.errors import LabError

#: What a shell completes: it finds these scripts by the last part of a path.
PROGRAM = "setup-env.py"
#: The environment variable by which a shell asks for completions; a path would be no name for it.
VARIABLE = "_SETUP_ENV_PY_COMPLETE"

#: What click's script has, and what must be there instead; its script for bash is right already.
_CHANGES: dict[str, dict[str, str]] = {
    "bash": {},
    "zsh": {
        "    (( ! $+commands[%(prog_name)s] )) && return 1\n": "",
        "=zsh_complete %(prog_name)s)": "=zsh_complete ${~words[1]})",
    },
    "fish": {
        # An eval, for ~ in the path.
        "COMP_CWORD=(commandline -t) %(prog_name)s)": (
            "COMP_CWORD=(commandline -t) (eval echo (commandline -opc)[1]))"
        ),
    },
}
SHELLS = tuple(_CHANGES)


def script(commands: click.Command, shell: str) -> str:
    """The completion script of *commands* for *shell*, one of :data:`SHELLS`.

    :raises LabError: when this version of click has another script.
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click knows these shells
    complete = kind(commands, {}, PROGRAM, VARIABLE)
    template = complete.source_template
    for theirs, ours in _CHANGES[shell].items():
        if theirs not in template:
            raise LabError(f"click's script for {shell} has changed: lab/completion.py must, too")
        template = template.replace(theirs, ours)
    return template % complete.source_vars()

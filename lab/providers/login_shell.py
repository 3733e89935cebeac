"""The scripts of a login to an instance, the same for all providers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from string import Template

_LOGIN = Template("""\
#!/bin/bash
# Every login to $name runs this script (ForceCommand of its sshd): it starts a shell or the
# requested command, with the profile that the stack wrote.
cd "$$HOME" || exit
if [[ -r .profile ]]; then
    # shellcheck disable=SC1091
    . ./.profile
fi
if [[ -n $${SSH_ORIGINAL_COMMAND+given} ]]; then
    command=$$SSH_ORIGINAL_COMMAND
    unset SSH_ORIGINAL_COMMAND
    exec bash -c "$$command"
fi
if [[ ! -t 0 ]]; then
    exec bash
fi
exec bash --noprofile --rcfile "$directory/bashrc" -i
""")

_BASHRC = Template("""\
# An interactive shell of the lab.
unset PROMPT_COMMAND
# Invisible marks say where the output of a command begins, and where it ends with which status:
# https://gitlab.freedesktop.org/Per_Bothner/specifications/-/blob/master/proposals/semantic-prompts.md
PS0='\\e]133;C\\a'
PS1='\\[\\e]133;D;$$?\\a\\]$begin:\\w$$ '
""")


def login(name: str, directory: Path) -> str:
    """The script for every login to the instance *name*; *directory* is the instance's."""
    return _LOGIN.substitute(name=name, directory=directory)


def prompt(name: str) -> str:
    """What the prompt in the instance *name* begins with."""
    return f"stack@{name}"


def bashrc(begin: str) -> str:
    """The start file of an interactive shell whose prompt begins with *begin*."""
    return _BASHRC.substitute(begin=begin)


def key(path: Path) -> str:
    """The public half of the key at *path*; makes the key if it is missing or incomplete."""
    public = path.with_name(path.name + ".pub")
    if not public.exists() or not public.read_text().strip():
        path.unlink(missing_ok=True)
        public.unlink(missing_ok=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "openstackoid", "-f", str(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )
    return public.read_text().strip()

"""A recording stand-in for ``VBoxManage``: which calls does Vagrant make for our Vagrantfile?

VirtualBox is not in Debian, so that no test can run it. Vagrant's own driver for it calls this
program, which answers as an empty VirtualBox would, as far as the driver reads the answers
(``plugins/providers/virtualbox/driver`` in Vagrant). It starts no machine. It writes each call as a
line of JSON into ``calls`` in the directory that the variable ``RECORDING`` names.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

_VERSION = "7.0.10r158379"
_INTERFACE = "vboxnet0"


def answer(state: dict[str, Any], arguments: list[str]) -> str | None:
    """What VirtualBox in *state*, which changes, says to *arguments*; None: no such machine."""
    machines: dict[str, dict[str, str]] = state.setdefault("machines", {})
    said: str | None = ""
    match arguments:
        case ["--version"]:
            said = _VERSION
        case ["list", kind]:
            said = _list(state, kind)
        case ["import", "-n", _]:
            said = 'Suggested VM name "box"'
        case ["import", _, "--vsys", "0", "--vmname", name, *_]:
            uuid = f"00000000-0000-4000-8000-{state.setdefault('next', 1):012}"
            state["next"] += 1
            machines[uuid] = {"name": name, "VMState": "poweroff", "nic1": "nat"}
        case ["hostonlyif", "create"]:
            said = f"Interface '{_INTERFACE}' was successfully created"
        case ["hostonlyif", "ipconfig", _, "--ip", address, "--netmask", mask]:
            state["network"] = {"IPAddress": address, "NetworkMask": mask}
        case ["showvminfo", uuid, *_] if uuid not in machines:
            said = None
        case ["showvminfo", uuid, *_]:
            said = "\n".join(f'{key}="{value}"' for key, value in machines[uuid].items())
        case ["modifyvm", uuid, *changes]:
            settings = zip(changes[::2], changes[1::2], strict=True)
            machines[uuid] |= {key.removeprefix("--"): value for key, value in settings}
        case ["unregistervm", uuid, "--delete"]:
            del machines[uuid]
    return said


def _list(state: dict[str, Any], kind: str) -> str:
    if kind == "vms":
        machines = state["machines"].items()
        return "\n".join(f'"{one["name"]}" {{{uuid}}}' for uuid, one in machines)
    if kind == "systemproperties":
        return f"Default machine folder:          {os.environ['RECORDING']}/machines"
    if kind == "hostonlyifs" and "network" in state:
        facts = {"Name": _INTERFACE, **state["network"], "Status": "Up"}
        return "\n".join(f"{key}:     {value}" for key, value in facts.items())
    return ""


def main() -> int:
    """Record the call, and answer it."""
    directory, arguments = Path(os.environ["RECORDING"]), sys.argv[1:]
    with (directory / "calls").open("a+") as calls:
        fcntl.flock(calls, fcntl.LOCK_EX)
        calls.write(json.dumps(arguments) + "\n")
        kept = directory / "state.json"
        state = json.loads(kept.read_text()) if kept.exists() else {}
        said = answer(state, arguments)
        kept.write_text(json.dumps(state))
    if said is None:
        print("VBoxManage: error: VBOX_E_OBJECT_NOT_FOUND", file=sys.stderr)
        return 1
    if arguments[0] == "startvm":
        print("VBoxManage: error: a recording starts no machine", file=sys.stderr)
        return 1
    print(said, end="\n" if said else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())

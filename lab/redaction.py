"""Remove a lab's secrets from texts.

The lab knows its own passwords and keys, and each occurrence of one gets its name in its place.
Tokens, and what a user may have written into ``lab.yaml``, are known by their form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lab.errors import LabError
from openstackoid.proxy.config import KEYS
from openstackoid.proxy.config import SEAL as SEALED
from openstackoid.scope import TAG_MARK

#: Files of the lab's state that hold nothing but secrets, which no other file may show.
SHARED_FILES = ("secrets/*.json", "secrets/tls/*.key", "secrets/tls/*.crt", "provider/key")
#: Likewise, files in the directory of an instance.
INSTANCE_FILES = (
    "etc/keystone/fernet-keys/*",
    "etc/keystone/credential-keys/*",
    f"etc/proxy/{KEYS}",
    "ssh/host_key",
    "data/rabbitmq/.erlang.cookie",
)

# A shorter word, such as the last line of a key, would be found in other texts, too.
_SHORTEST = 16
_PEM = re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----(.*?)-----END \1-----", re.DOTALL)
# What is known by its form: a pattern, whose groups "before" and "after" stay, and a name. None of
# them looks at a character many times: logs are large, and their lines may be long.
_FORMS = (
    (_PEM, "private key"),
    # Fernet's version 0x80, and a time before the year 2106 (keystone/token/token_formatters.py).
    (re.compile(r"gAAAA[\w-]{16,}(?:=|%3D)*"), "token"),
    (re.compile(rf"{re.escape(SEALED)}[\w.~-]{{8,}}=*"), "sealed token"),
    (
        re.compile(
            r"(?<![\w.~+/=-])[\w.~+/=-]{16,}+"
            rf"(?P<after>{TAG_MARK}|{TAG_MARK.replace('!', '%21')})"
        ),
        "token",
    ),
    (
        re.compile(
            r"(?P<before>\bX-(?:Auth|Subject|Service|Storage)-Token['\"]?\s*[:=]\s*b?['\"]?)"
            r"[^\s'\",;!%<(\[{]{8,}",
            re.IGNORECASE,
        ),
        "token",
    ),
    # The URL of a console.
    (re.compile(r"(?P<before>[?&]token=|%3Ftoken%3D)[\w.~-]+"), "token"),
    (re.compile(r"(?P<before>://[^\s/:@'\"]{0,64}:)[^\s/@'\"<]+(?P<after>@)"), "password"),
    (
        re.compile(
            r"(?P<before>['\"](?:\w{0,32}password|adminPass|secret)['\"]\s*:\s*['\"])"
            r"[^'\"<][^'\"]*",
            re.IGNORECASE,
        ),
        "password",
    ),
    # DevStack's variables.
    (
        re.compile(
            r"(?P<before>\b[A-Z][A-Z_]{0,32}(?:PASSWORD|SECRET|TOKEN|KEY)['\"]?\s*[:=]\s*['\"]?)"
            r"[^\s'\",<#}]+"
        ),
        "secret",
    ),
)


class Redaction:
    """Takes the *secrets* out of texts; each has a name, which takes its place."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        # A secret may contain another one.
        self._secrets = sorted(secrets.items(), key=lambda item: -len(item[0]))

    def __call__(self, text: str) -> str:
        """*text* without secrets and tokens."""
        for secret, name in self._secrets:
            text = text.replace(secret, _mark(name))
        for pattern, name in _FORMS:
            text = pattern.sub(lambda found, name=name: _replaced(found, name), text)  # type: ignore[misc]
        return text


def secrets(state: Path, instances: Mapping[str, Path]) -> dict[str, str]:
    """The secrets of the lab in *state*, each with a name; its *instances* have directories.

    :raises LabError: when one of the files that are there cannot be read.
    """
    files = [(path, path.stem) for path in _matching(state, SHARED_FILES)]
    for instance, directory in instances.items():
        files += [
            (path, f"{instance}/{path.relative_to(directory)}")
            for path in _matching(directory, INSTANCE_FILES)
        ]
    found: dict[str, str] = {}
    for path, name in files:
        try:
            found |= _words(path, name)
        except (OSError, ValueError, AttributeError) as error:
            raise LabError(
                f"{path} cannot be read, so that its secrets would stay in the texts: {error}"
            ) from error
    return found


def is_secret(directory: Path, path: Path) -> bool:
    """Whether the file *path* in an instance's *directory* is nothing but secret."""
    return any(path.relative_to(directory).match(pattern) for pattern in INSTANCE_FILES)


def _matching(directory: Path, patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (path for path in directory.glob(pattern) if path.is_file())


def _words(path: Path, name: str) -> dict[str, str]:
    """What is secret in the file *path* of secrets, with its name."""
    text = path.read_text(errors="replace")
    if path.suffix == ".json":
        return {str(value): f"{name}/{key}" for key, value in json.loads(text).items() if value}
    if keys := _PEM.findall(text):
        # A certificate beside it is no secret.
        text = "\n".join(body for _, body in keys)
    return {word: name for word in text.split() if len(word) >= _SHORTEST}


def _mark(name: str) -> str:
    # Neither YAML nor JSON nor a shell's words end in it.
    return f"<removed:{name.replace(' ', '-')}>"


def _replaced(found: re.Match[str], name: str) -> str:
    groups = {"before": "", "after": "", **found.groupdict()}
    return f"{groups['before']}{_mark(name)}{groups['after']}"

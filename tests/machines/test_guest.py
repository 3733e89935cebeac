"""The guest, booted by QEMU without KVM as nova would start it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import apt
from lab.guest import PACKAGES, build, made_of, personalise
from lab.wheels import guests

#: How many seconds a test waits for what takes a few.
PATIENCE = 60
USER_DATA = '#!/bin/sh\necho "user data of $(hostname)"\necho once >>/data/user-data\n'
UUID = "6f2b8c1e-1111-4222-8333-944444444444"
SERVICE = """\
#!/bin/sh
read -r method path version
while read -r line && [ ${{#line}} -gt 1 ]; do :; done
if mkdir {metadata}/asked 2>/dev/null || [ ! -f "{metadata}$path" ]; then
    printf 'HTTP/1.0 404 Not Found\\r\\n\\r\\n'
else
    printf 'HTTP/1.0 200 OK\\r\\n\\r\\n'
    cat "{metadata}$path"
fi
"""


class Server:
    """A virtual machine with *disk* and, if there is one, the config drive *drive*."""

    def __init__(self, disk: Path, drive: Path | None = None, network: str = "") -> None:
        self.console = disk.with_name("console")
        self.console.write_bytes(b"")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.key = disk.with_name("key")
        forward = f"hostfwd=tcp:127.0.0.1:{self.port}-:22"
        argv = ["qemu-system-x86_64", "-machine", "pc", "-accel", "tcg", "-m", "192"]
        argv += ["-display", "none", "-nodefaults", "-vga", "std", "-uuid", UUID]
        argv += ["-serial", f"file:{self.console}", "-monitor", "stdio"]
        argv += ["-drive", f"file={disk},format=raw,if=virtio"]
        argv += [
            "-netdev",
            f"user,id=net,{forward}{network}",
            "-device",
            "virtio-net-pci,netdev=net",
        ]
        if drive:
            argv += ["-drive", f"file={drive},format=raw,if=ide,media=cdrom,readonly=on"]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )

    def wait_for(self, text: str) -> str:
        """What the console says, once that has *text*."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            said = self.console.read_text(errors="replace")
            if text in said:
                return said
            time.sleep(0.1)
        pytest.fail(f"no {text!r} in:\n{self.console.read_text(errors='replace')}", pytrace=False)

    def ssh(self, command: str) -> str:
        """What *command* says in the guest; the server's key opens the door."""
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes"]
        options += ["ConnectTimeout=10", "IdentitiesOnly=yes"]
        argv = ["ssh", "-F", "none", "-i", str(self.key), "-p", str(self.port)]
        argv += [word for option in options for word in ("-o", option)]
        end = time.monotonic() + PATIENCE
        while True:
            done = subprocess.run(
                [*argv, "root@127.0.0.1", command], capture_output=True, text=True, check=False
            )
            # 255 is of ssh itself: the guest may not listen yet.
            if done.returncode != 255 or time.monotonic() > end:
                assert done.returncode == 0, done.stderr
                return done.stdout
            time.sleep(0.5)

    def press_power_button(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("system_powerdown\n")
        self.process.stdin.flush()
        assert self.process.wait(PATIENCE) == 0

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needed = [*PACKAGES, "genisoimage", "openssh-client", "qemu-system-x86"]
    if apt.missing(needed) and os.geteuid() != 0 and "CI" not in os.environ:
        pytest.skip(f"packages are missing: {apt.install_line(apt.missing(needed))}")
    apt.ensure(needed, print)
    return build(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def disk(base: Path, tmp_path: Path) -> Path:
    """The disk of a server, which is larger than its image, as a flavor makes it."""
    path = tmp_path / "disk"
    personalise(base, "InstanceTwo", path)
    os.truncate(path, 256 * 1024 * 1024)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path.with_name("key")], check=True
    )
    return path


@pytest.fixture
def metadata(disk: Path) -> Path:
    """A directory with what nova tells a server, in the places where both ways have it."""
    latest = disk.with_name("metadata") / "openstack" / "latest"
    latest.mkdir(parents=True)
    key = disk.with_name("key.pub").read_text()
    facts = {
        "uuid": UUID,
        "meta": {"hostname": "of-the-user"},
        "public_keys": {"mine": key},
        "keys": [{"name": "mine", "type": "ssh", "data": key}],
        "hostname": "demo.novalocal",
        "name": "demo",
    }
    (latest / "meta_data.json").write_text(json.dumps(facts))
    (latest / "user_data").write_text(USER_DATA)
    return latest.parents[1]


@pytest.fixture
def drive(metadata: Path) -> Path:
    path = metadata.with_name("drive.iso")
    argv = ["genisoimage", "-quiet", "-r", "-J", "-V", "config-2", "-o", str(path), str(metadata)]
    subprocess.run(argv, check=True)
    return path


@pytest.fixture
def service(metadata: Path) -> Path:
    """A program that answers one request to the metadata service, and the first one badly."""
    path = metadata.with_name("service")
    path.write_text(SERVICE.format(metadata=metadata))
    path.chmod(0o755)
    return path


@pytest.fixture
def boot(disk: Path) -> Iterator[list[Server]]:
    """The servers that a test adds; they end with it."""
    started: list[Server] = []
    yield started
    for server in started:
        server.end()


def test_the_image_is_small_and_says_what_it_is_made_of(base: Path) -> None:
    assert base.stat().st_size < 20_000_000
    assert "linux-image-" in made_of(base)
    assert "\n" not in made_of(base)


def test_the_same_packages_make_the_same_bytes(base: Path, tmp_path: Path) -> None:
    again = build(tmp_path)
    assert again.name == base.name
    assert again.read_bytes() == base.read_bytes()


def test_a_server_does_what_its_config_drive_says(
    disk: Path, drive: Path, boot: list[Server]
) -> None:
    boot.append(Server(disk, drive))
    first = boot[-1]
    said = first.wait_for("demo login:")
    assert "openstackoid: this image is from InstanceTwo" in said
    first.wait_for("user data of demo")
    assert first.ssh("hostname") == "demo\n"
    assert first.ssh("cat /sys/module/virtio_net/parameters/csum") == "N\n"
    host_key = first.ssh("md5sum /etc/dropbear/*")
    first.ssh("echo kept >/data/file")
    # What a user sees of /data is on the disk without any shutdown.
    first.end()

    boot.append(Server(disk, drive))
    second = boot[-1]
    second.wait_for("demo login:")
    assert second.ssh("cat /data/file /data/user-data") == "kept\nonce\n"
    assert second.ssh("md5sum /etc/dropbear/*") == host_key
    size = int(second.ssh("df -k /data | awk 'END { print $2 }'"))
    assert size > 200 * 1024
    second.press_power_button()


def test_a_server_without_config_drive_asks_the_metadata_service(
    disk: Path, service: Path, boot: list[Server]
) -> None:
    network = ",net=169.254.169.0/24,dhcpstart=169.254.169.15"
    network += f",guestfwd=tcp:169.254.169.254:80-cmd:{service}"
    boot.append(Server(disk, network=network))
    boot[-1].wait_for("demo login:")
    boot[-1].wait_for("user data of demo")
    assert boot[-1].ssh("hostname") == "demo\n"


def test_a_server_without_any_metadata_has_its_prompt(disk: Path, boot: list[Server]) -> None:
    boot.append(Server(disk))
    boot[-1].wait_for("openstackoid login:")
    boot[-1].press_power_button()


@pytest.mark.parametrize(("accelerator", "boots"), [("tcg", True), ("broken", False)])
def test_the_trial_of_an_accelerator_sees_whether_a_guest_boots(
    base: Path, accelerator: str, boots: bool
) -> None:
    assert guests.boots(base.parent, accelerator, PATIENCE) is boots

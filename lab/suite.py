"""The whole test suite, in two processes side by side."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import FrameType

#: The tests that use the repository's own lab, one after another.
OWN_LAB = ("tests/infra", "tests/integration")


def run(pytest: Sequence[str]) -> int:
    """Run all tests with the command *pytest*; return its exit status.

    The tests of the repository's own lab have the terminal. All other tests run beside them, since
    they need no lab or have labs of their own. Their output follows. Two last lines say how both
    processes ended.
    """
    with tempfile.TemporaryFile() as output:
        others = subprocess.Popen(
            [*pytest, *(f"--ignore={directory}" for directory in OWN_LAB)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        own = subprocess.Popen([*pytest, *OWN_LAB])

        def terminate(_number: int, _frame: FrameType | None) -> None:
            for process in (own, others):
                process.terminate()

        # A Ctrl-C reaches both of them, and they remove their labs.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, terminate)
        statuses = (own.wait(), others.wait())
        output.seek(0)
        sys.stdout.buffer.write(output.read())
    for name, status in zip(
        (f"tests in {' and '.join(OWN_LAB)}", "all other tests"), statuses, strict=True
    ):
        print(f"{name}: {'passed' if status == 0 else f'FAILED (status {status})'}")
    sys.stdout.flush()
    return next((status for status in statuses if status), 0)

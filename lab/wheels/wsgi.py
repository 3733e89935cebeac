"""Serve a WSGI application of OpenStack with waitress."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import waitress

from lab.wheels.services import SERVICES


def serve() -> None:
    """Entry of a program: ``NAME SERVICE URL [ARGUMENT…]`` in ``sys.argv``.

    The proxy in front is trusted with the ``X-Forwarded-*`` headers: oslo.middleware and
    keystone build their links from them.
    """
    name, wanted, url, *arguments = sys.argv
    sys.argv[:] = [name, *arguments]
    service = next(service for service in SERVICES["fake"] if service.name == wanted)
    if "TMPDIR" in os.environ:
        # What an earlier process has left must not count.
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
        Path(os.environ["TMPDIR"]).mkdir()
        tempfile.tempdir = None
    application = importlib.import_module(service.module).application
    # Neutron's OVN driver takes the signal, and does not end.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if service.warm_up:
        module, _, function = service.warm_up.partition(":")
        getattr(importlib.import_module(module), function)()
    waitress.serve(
        application,
        listen=urlsplit(url).netloc,
        url_prefix=urlsplit(url).path,
        threads=service.threads,
        ident=None,
        clear_untrusted_proxy_headers=False,
        # A connection stays open for HAProxy to reuse; the default channel limit is 100.
        connection_limit=1000,
        channel_timeout=3600,
    )


def load_policies_of_neutron() -> None:
    """Have neutron load its policies before its first requests.

    It does so upon the first one, and shows its enforcers to others before they have their rules
    (neutron.policy.init, neutron_lib.policy._engine.init): a second request that comes at the same
    time sees no network (seen). A context asks whether its user is an administrator.
    """
    from neutron import policy  # noqa: PLC0415 - of one service only
    from neutron_lib import context  # noqa: PLC0415

    context.Context()
    policy.init()

"""The one family of errors that the lab raises on purpose."""

from __future__ import annotations


class LabError(Exception):
    """Something the lab cannot do; its text is one line that names the thing and the way out."""

"""The base class of the errors that the lab raises on purpose."""

from __future__ import annotations


class LabError(Exception):
    """The lab cannot do something; the text is one line that names the problem and the fix."""

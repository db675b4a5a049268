"""What an examination of an installation finds, as both of its halves tell it (`arkor doctor`)."""

from __future__ import annotations

from attrs import frozen

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@frozen
class Diagnostic:
    """One thing that was looked at: how it stands, in a sentence, and what to do where something is amiss."""

    subject: str
    level: str
    sentence: str
    remedy: str | None = None

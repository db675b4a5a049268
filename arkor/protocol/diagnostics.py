"""One result of `arkor doctor`, from its client half or its backend half."""

from __future__ import annotations

from attrs import frozen

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@frozen
class Diagnostic:
    """The state of one subject, as a sentence, and the remedy where something is wrong."""

    subject: str
    level: str
    sentence: str
    remedy: str | None = None

"""The results of `arkor doctor`, as the command line and the backend's part of it exchange them."""

from __future__ import annotations

from attrs import frozen

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@frozen
class Diagnostic:
    """The result of one check: its level, a sentence, and what to do about it (`remedy`)."""

    subject: str
    level: str
    sentence: str
    remedy: str | None = None


def ok(subject: str, sentence: str) -> Diagnostic:
    return Diagnostic(subject, OK, sentence)


def warning(subject: str, sentence: str, remedy: str | None = None) -> Diagnostic:
    return Diagnostic(subject, WARNING, sentence, remedy)


def problem(subject: str, sentence: str, remedy: str | None = None) -> Diagnostic:
    return Diagnostic(subject, PROBLEM, sentence, remedy)

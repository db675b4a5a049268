"""The content of a notification, and its JSON for Slack, Discord, Teams and plain webhooks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen

from arkor.errors import InvalidConfig
from arkor.formatting import format_duration, shorten
from arkor.protocol.jobs import TrainingJob

#: The maximum length of a run's error, and of a message on Discord, in characters.
MAX_ERROR_LENGTH, MAX_CONTENT_LENGTH = 1000, 2000

_VERBS = {"started": "has started", "completed": "completed", "failed": "failed", "cancelled": "was cancelled"}


@frozen
class Notification:
    """An event of a run: `"started"`, `"checkpoint"`, or its final status.

    `step` and `loss` are the last logged ones; `seconds` is the duration of the run.
    """

    event: str
    job: TrainingJob
    step: int | None = None
    loss: float | None = None
    seconds: float | None = None

    @property
    def title(self) -> str:
        """`support-bot-v1 completed`"""
        verb = _VERBS.get(self.event, f"has a checkpoint at step {self.step}")
        return f"{self.job.name} {verb}"

    @property
    def details(self) -> dict[str, str]:
        facts = {"Run": self.job.id}
        if self.step is not None and self.event != "checkpoint":
            facts["Step"] = str(self.step)
        if self.loss is not None:
            facts["Last loss"] = f"{self.loss:.4g}"
        if self.seconds is not None:
            facts["Duration"] = format_duration(self.seconds)
        if self.event == "failed" and self.job.error:
            facts["Error"] = shorten(str(self.job.error), MAX_ERROR_LENGTH)
        return facts

    @property
    def text(self) -> str:
        """The title and the details, one per line."""
        return "\n".join([self.title, *(f"{label}: {fact}" for label, fact in self.details.items())])


def _slack(notification: Notification) -> dict[str, Any]:
    """Escape Slack's three control characters, so that the name of a run cannot mention anyone."""
    return {"text": notification.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}


def _discord(notification: Notification) -> dict[str, Any]:
    return {"content": shorten(notification.text, MAX_CONTENT_LENGTH), "allowed_mentions": {"parse": []}}


def _teams(notification: Notification) -> dict[str, Any]:
    facts = [{"title": label, "value": fact} for label, fact in notification.details.items()]
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [
            {"type": "TextBlock", "text": notification.title, "weight": "Bolder", "wrap": True},
            {"type": "FactSet", "facts": facts},
        ],
    }
    content_type = "application/vnd.microsoft.card.adaptive"
    return {"type": "message", "attachments": [{"contentType": content_type, "contentUrl": None, "content": card}]}


def _plain(notification: Notification) -> dict[str, Any]:
    job, loss = notification.job, notification.loss
    return {
        "event": notification.event,
        "text": notification.text,
        "jobId": str(job.id),
        "name": str(job.name),
        "status": str(job.status),
        "step": notification.step,
        "loss": loss if loss is None or math.isfinite(loss) else str(loss),  # JSON has no NaN
        "seconds": notification.seconds,
        "error": None if job.error is None else str(job.error),
    }


MESSAGE_FORMATS: dict[str, Callable[[Notification], dict[str, Any]]] = {
    "slack": _slack,
    "discord": _discord,
    "teams": _teams,
    "plain": _plain,
}

#: The hosts of each messenger; a leading dot matches every subdomain.
_HOSTS = {
    "hooks.slack.com": "slack",
    "hooks.slack-gov.com": "slack",
    "discord.com": "discord",
    ".discord.com": "discord",
    "discordapp.com": "discord",
    ".webhook.office.com": "teams",
    "outlook.office.com": "teams",
    ".logic.azure.com": "teams",
    ".powerplatform.com": "teams",
    ".powerautomate.com": "teams",
}


def detect_kind(url: Any) -> str:
    """Return the message format for a webhook URL, which no error quotes: it is a secret."""
    if not isinstance(url, str) or not url.strip():
        raise InvalidConfig("Notify.url", "is missing", "check that the environment variable for it is set")
    try:
        parts = urlsplit(url)
        host, scheme = (parts.hostname or "").lower().rstrip("."), parts.scheme
        _ = parts.port  # raises ValueError for an invalid port
    except ValueError:
        host, scheme = "", ""
    if scheme not in ("http", "https") or not host or any(not "!" <= char <= "~" for char in url):
        raise InvalidConfig("Notify.url", "must be a URL that begins with http:// or https://, without spaces")
    kinds = [kind for name, kind in _HOSTS.items() if host == name or (name[0] == "." and host.endswith(name))]
    if kinds == ["discord"] and parts.path.rstrip("/").endswith("/slack"):
        return "slack"  # Discord accepts Slack's format at this path
    return kinds[0] if kinds else "plain"

"""What is told of a run, and how each messenger wants it written: Slack, Discord, Teams, or anything that takes JSON.

How it gets there is the business of `delivery_queue.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen

from arkor.errors import InvalidConfig
from arkor.protocol.jobs import TrainingJob

#: What the error of a run is cut to, and what Discord takes at most; in characters.
MAX_ERROR_LENGTH, MAX_CONTENT_LENGTH = 1000, 2000

_VERBS = {"started": "has started", "completed": "completed", "failed": "failed", "cancelled": "was cancelled"}


@frozen
class Notification:
    """Something that happened to a run: `event` is `"started"`, `"checkpoint"`, or how it ended.

    `step` and `loss` are the last ones that were logged, `seconds` is how long the run took.
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
        """The rest of it, by name, for a person."""
        facts = {"Run": self.job.id}
        if self.step is not None and self.event != "checkpoint":
            facts["Step"] = str(self.step)
        if self.loss is not None:
            facts["Last loss"] = f"{self.loss:.4g}"
        if self.seconds is not None:
            facts["Duration"] = format_duration(self.seconds)
        if self.event == "failed" and self.job.error:
            facts["Error"] = truncate(str(self.job.error), MAX_ERROR_LENGTH)
        return facts

    @property
    def text(self) -> str:
        """All of it, a fact a line."""
        return "\n".join([self.title, *(f"{name}: {fact}" for name, fact in self.details.items())])


def format_duration(seconds: float) -> str:
    """`3 h 12 min`, `3 min 12 s`, `12 s`"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def truncate(text: str, max_length: int) -> str:
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


# How each wants it


def _slack(notification: Notification) -> dict[str, Any]:
    """Its three special characters are escaped: the name of a run calls nobody to the channel."""
    return {"text": notification.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}


def _discord(notification: Notification) -> dict[str, Any]:
    return {"content": truncate(notification.text, MAX_CONTENT_LENGTH), "allowed_mentions": {"parse": []}}


def _teams_connector(notification: Notification) -> dict[str, Any]:
    facts = [{"name": name, "value": fact} for name, fact in notification.details.items()]
    return {
        "@type": "MessageCard",
        "@context": "https://schema.org/extensions",
        "summary": notification.title,
        "title": notification.title,
        "sections": [{"facts": facts, "markdown": False}],
    }


def _teams_workflow(notification: Notification) -> dict[str, Any]:
    facts = [{"title": name, "value": fact} for name, fact in notification.details.items()]
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
    job = notification.job
    loss = (
        notification.loss
        if notification.loss is None or notification.loss - notification.loss == 0
        else str(notification.loss)
    )
    return {
        "event": notification.event,
        "text": notification.text,
        "jobId": str(job.id),
        "name": str(job.name),
        "status": str(job.status),
        "step": notification.step,
        "loss": loss,
        "seconds": notification.seconds,
        "error": None if job.error is None else str(job.error),
    }


MESSAGE_FORMATS: dict[str, Callable[[Notification], dict[str, Any]]] = {
    "slack": _slack,
    "discord": _discord,
    "teams": _teams_workflow,
    "teams-connector": _teams_connector,
    "plain": _plain,
}

#: Which messenger listens at which hosts; a leading dot stands for any host below.
_HOSTS = {
    "hooks.slack.com": "slack",
    "hooks.slack-gov.com": "slack",
    "discord.com": "discord",
    ".discord.com": "discord",
    "discordapp.com": "discord",
    ".webhook.office.com": "teams-connector",
    "outlook.office.com": "teams-connector",
    ".logic.azure.com": "teams",
    ".powerplatform.com": "teams",
    ".powerautomate.com": "teams",
}


def detect_kind(url: Any) -> str:
    """Which of `MESSAGE_FORMATS` is understood at this address. Raises `InvalidConfig`, without showing it: it is
    a secret.
    """
    if not isinstance(url, str) or not url.strip():
        raise InvalidConfig("Notify.url", "is missing; is the environment variable set that it comes from?")
    try:
        parts = urlsplit(url)
        host, scheme = (parts.hostname or "").lower().rstrip("."), parts.scheme
        _ = parts.port
    except ValueError:
        host, scheme = "", ""
    if scheme not in ("http", "https") or not host or any(not "!" <= char <= "~" for char in url):
        raise InvalidConfig("Notify.url", "must be an address that begins with http:// or https://, without blanks")
    known = [kind for name, kind in _HOSTS.items() if host == name or (name[0] == "." and host.endswith(name))]
    if known == ["discord"] and parts.path.rstrip("/").endswith("/slack"):
        return "slack"  # Discord's door for messages that are written for Slack
    return known[0] if known else "plain"

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
LONGEST_ERROR, LONGEST_CONTENT = 1000, 2000

_VERBS = {"started": "has started", "completed": "completed", "failed": "failed", "cancelled": "was cancelled"}


@frozen
class News:
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
    def facts(self) -> dict[str, str]:
        """The rest of it, by name, for a person."""
        facts = {"Run": self.job.id}
        if self.step is not None and self.event != "checkpoint":
            facts["Step"] = str(self.step)
        if self.loss is not None:
            facts["Last loss"] = f"{self.loss:.4g}"
        if self.seconds is not None:
            facts["Duration"] = duration(self.seconds)
        if self.event == "failed" and self.job.error:
            facts["Error"] = shortened(str(self.job.error), LONGEST_ERROR)
        return facts

    @property
    def text(self) -> str:
        """All of it, a fact a line."""
        return "\n".join([self.title, *(f"{name}: {fact}" for name, fact in self.facts.items())])


def duration(seconds: float) -> str:
    """`3 h 12 min`, `3 min 12 s`, `12 s`"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


# How each wants it


def _slack(news: News) -> dict[str, Any]:
    """Its three special characters are escaped: the name of a run calls nobody to the channel."""
    return {"text": news.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}


def _discord(news: News) -> dict[str, Any]:
    return {"content": shortened(news.text, LONGEST_CONTENT), "allowed_mentions": {"parse": []}}


def _teams_connector(news: News) -> dict[str, Any]:
    facts = [{"name": name, "value": fact} for name, fact in news.facts.items()]
    return {
        "@type": "MessageCard",
        "@context": "https://schema.org/extensions",
        "summary": news.title,
        "title": news.title,
        "sections": [{"facts": facts, "markdown": False}],
    }


def _teams_workflow(news: News) -> dict[str, Any]:
    facts = [{"title": name, "value": fact} for name, fact in news.facts.items()]
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [
            {"type": "TextBlock", "text": news.title, "weight": "Bolder", "wrap": True},
            {"type": "FactSet", "facts": facts},
        ],
    }
    content_type = "application/vnd.microsoft.card.adaptive"
    return {"type": "message", "attachments": [{"contentType": content_type, "contentUrl": None, "content": card}]}


def _plain(news: News) -> dict[str, Any]:
    job = news.job
    loss = news.loss if news.loss is None or news.loss - news.loss == 0 else str(news.loss)
    return {
        "event": news.event,
        "text": news.text,
        "jobId": str(job.id),
        "name": str(job.name),
        "status": str(job.status),
        "step": news.step,
        "loss": loss,
        "seconds": news.seconds,
        "error": None if job.error is None else str(job.error),
    }


SHAPES: dict[str, Callable[[News], dict[str, Any]]] = {
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


def kind_of(url: Any) -> str:
    """Which of `SHAPES` is understood at this address. Raises `InvalidConfig`, without showing it: it is a secret."""
    if not isinstance(url, str) or not url.strip():
        raise InvalidConfig("Notify.url", "is missing; is the environment variable set that it comes from?")
    try:
        parts = urlsplit(url)
        host, scheme = (parts.hostname or "").lower().rstrip("."), parts.scheme
        _ = parts.port
    except ValueError:
        host, scheme = "", ""
    if scheme not in ("http", "https") or not host or any(not "!" <= letter <= "~" for letter in url):
        raise InvalidConfig("Notify.url", "must be an address that begins with http:// or https://, without blanks")
    known = [kind for name, kind in _HOSTS.items() if host == name or (name[0] == "." and host.endswith(name))]
    if known == ["discord"] and parts.path.rstrip("/").endswith("/slack"):
        return "slack"  # Discord's door for messages that are written for Slack
    return known[0] if known else "plain"

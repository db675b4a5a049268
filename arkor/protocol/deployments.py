"""A model behind an address: the deployment, the keys that open it, and what may be asked of either.

The classes decode whatever a newer backend sends; the functions say no to what no backend would take. Which slugs
are reserved, and which models there are, only a backend knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from arkor.errors import InvalidConfig
from arkor.formatting import quote
from arkor.protocol.model_target import ModelTarget

AUTH_MODES = ("none", "fixed_api_key")
RETENTION_MODES = ("unlimited", "disabled", "days")

#: Characters of a slug, and of a key's label without the white space around it.
SLUG_LENGTH = (2, 50)
LABEL_LENGTH = (1, 80)

_SLUG = re.compile(r"[a-z0-9][a-z0-9-]*[a-z0-9]")


def _str_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


@frozen
class Deployment:
    """Answers OpenAI chat completions with the model that `target` names.

    `target` is `{"kind": "adapter", "adapter": {"kind", "jobId", "step"?}}` or `{"kind": "base_model", "baseModel"}`,
    `auth_mode` is `"none"` or `"fixed_api_key"`, `run_retention_mode` `"unlimited"`, `"disabled"` or `"days"`.
    Times are ISO 8601 in UTC.
    """

    id: str
    slug: str
    target: Mapping[str, Any]
    auth_mode: str
    enabled: bool = True
    org_id: str = ""
    project_id: str = ""
    url_format: str = "openai_compat"
    custom_domain: str | None = None
    run_retention_mode: str | None = None
    run_retention_days: int | None = None
    created_at: str = ""
    updated_at: str = ""
    url: str | None = field(default=None, converter=_str_or_none)
    extra: Mapping[str, Any] = field(factory=dict)


@frozen
class DeploymentKey:
    """A key of a deployment. Its `plaintext` is there once, in the answer that made it, and never shown by `repr`."""

    id: str
    label: str
    prefix: str = ""
    enabled: bool = True
    created_at: str = ""
    last_used_at: str | None = None
    plaintext: str | None = field(default=None, repr=False)
    extra: Mapping[str, Any] = field(factory=dict)


# What may be asked; each raises `InvalidConfig`, which names the field


def check_slug(slug: Any) -> None:
    """2 to 50 lower-case letters, digits and hyphens; a hyphen neither first nor last."""
    shortest, longest = SLUG_LENGTH
    if not isinstance(slug, str) or not shortest <= len(slug) <= longest or not _SLUG.fullmatch(slug):
        problem = f"must be {shortest} to {longest} of a-z, 0-9 and hyphens, with no hyphen first or last"
        raise InvalidConfig("slug", f"{problem}; not {quote(slug)}")


def check_auth_mode(mode: Any) -> None:
    _check_choice("auth_mode", mode, AUTH_MODES)


def check_target(target: Any) -> None:
    """Check a target of the known kinds; unknown fields in it are left for the backend to check."""
    ModelTarget.parse(target)


def check_retention(mode: Any, days: Any) -> None:
    """How long a deployment keeps what it was asked and answered; None leaves it to the backend."""
    if mode is not None:
        _check_choice("run_retention_mode", mode, RETENTION_MODES)
    if days is None:
        return
    if type(days) is not int or not 0 < days < 2**31:
        raise InvalidConfig("run_retention_days", f"must be a positive whole number of days, not {quote(days)}")
    if mode is not None and mode != "days":
        raise InvalidConfig("run_retention_days", f'goes with the retention mode "days" alone, not with {mode!r}')


def clean_label(label: Any) -> str:
    """The label of a key without the white space around it: 1 to 80 characters."""
    shortest, longest = LABEL_LENGTH
    if not isinstance(label, str) or not shortest <= len(label.strip()) <= longest:
        raise InvalidConfig("label", f"must have {shortest} to {longest} characters, not {quote(label)}")
    return label.strip()


def _check_choice(name: str, value: Any, words: tuple[str, ...]) -> None:
    if value not in words:
        raise InvalidConfig(name, f"must be {' or '.join(map(repr, words))}, not {quote(value)}")

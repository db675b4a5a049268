"""A model at a public address: the deployment, its API keys, and the validation of both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from arkor.errors import InvalidConfig
from arkor.formatting import quote
from arkor.protocol.codec import optional

AUTH_MODES = ("none", "fixed_api_key")
RETENTION_MODES = ("unlimited", "disabled", "days")

#: The rule of a slug as JSON Schema; the `description` completes "must be …".
SLUG: Mapping[str, Any] = {
    "type": "string",
    "minLength": 2,
    "maxLength": 50,
    "pattern": "^[a-z0-9][a-z0-9-]*[a-z0-9]$",
    "description": "2 to 50 of a-z, 0-9 and hyphens, with no hyphen first or last",
}

#: The shortest and the longest label of a key, in characters.
LABEL_LENGTH = (1, 80)

#: The longest retention period of conversations: a century.
MAX_RETENTION_DAYS = 36_500


@frozen
class Deployment:
    """An address that serves OpenAI chat completions with the model of `target`.

    `target` is `{"kind": "adapter", "adapter": {"kind", "jobId", "step"?}}`, `{"kind":
    "base_model", "baseModel"}` or, in the managed cloud, `{"kind": "model_menu", …}`. The cloud
    ends a deployment at `expires_at`. `auth_mode` is `"none"` or `"fixed_api_key"`, `run_retention_mode`
    `"unlimited"`, `"disabled"` or `"days"`. Times are ISO 8601 in UTC.
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
    url: str | None = optional(str)
    expires_at: str | None = optional(str)
    extra: Mapping[str, Any] = field(factory=dict)


@frozen
class DeploymentKey:
    """An API key of a deployment; only the response that created it has the `plaintext`."""

    id: str
    label: str
    prefix: str = ""
    enabled: bool = True
    created_at: str = ""
    last_used_at: str | None = None
    plaintext: str | None = field(default=None, repr=False)
    extra: Mapping[str, Any] = field(factory=dict)


# Validation: each function raises `InvalidConfig`.


def check_slug(slug: Any) -> None:
    """Require lower-case letters, digits, and hyphens between them."""
    if not isinstance(slug, str) or len(slug) > SLUG["maxLength"] or not re.fullmatch(SLUG["pattern"], slug):
        raise InvalidConfig("slug", f"must be {SLUG['description']}; not {quote(slug)}")


def check_retention(mode: Any, days: Any) -> None:
    """Check how long a deployment keeps its conversations; the backend chooses for None."""
    if mode is not None:
        check_choice("run_retention_mode", mode, RETENTION_MODES)
    if days is None:
        return
    if type(days) is not int or not 0 < days < 2**31:
        raise InvalidConfig("run_retention_days", f"must be a positive whole number of days, not {quote(days)}")
    if mode is not None and mode != "days":
        raise InvalidConfig("run_retention_days", f'goes with the retention mode "days" alone, not with {mode!r}')


def clean_label(label: Any) -> str:
    shortest, longest = LABEL_LENGTH
    if not isinstance(label, str) or not shortest <= len(label.strip()) <= longest:
        raise InvalidConfig("label", f"must have {shortest} to {longest} characters, not {quote(label)}")
    return label.strip()


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidConfig(name, f"must be {' or '.join(map(repr, choices))}, not {quote(value)}")

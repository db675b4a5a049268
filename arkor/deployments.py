"""A model behind an address: the deployment, and the keys that open it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen


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

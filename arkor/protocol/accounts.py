"""The user of a token, and the organisations and projects that runs belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from arkor.protocol.codec import nested, nested_list


@frozen
class User:
    """The owner of a token; an anonymous one has no `email`."""

    id: str
    email: str | None = None
    extra: Mapping[str, Any] = field(factory=dict)


@frozen
class Org:
    id: str
    slug: str
    name: str = ""
    extra: Mapping[str, Any] = field(factory=dict)


@frozen
class Project:
    id: str
    slug: str
    name: str = ""
    org_id: str = ""
    extra: Mapping[str, Any] = field(factory=dict)


@frozen
class Me:
    """The user of the token, and the organisations of which they are a member."""

    user: User = nested(User)
    orgs: tuple[Org, ...] = nested_list(Org)
    extra: Mapping[str, Any] = field(factory=dict)

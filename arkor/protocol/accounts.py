"""Who one is, and where the runs belong: the user, the organisations, their projects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from arkor.protocol.codec import from_wire


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


def _user(value: Any) -> Any:
    return from_wire(User, value) if isinstance(value, Mapping) else value


def _orgs(value: Any) -> tuple[Any, ...]:
    items = value if isinstance(value, (list, tuple)) else ()
    return tuple(from_wire(Org, item) if isinstance(item, Mapping) else item for item in items)


@frozen
class Me:
    """The user behind the token, and the organisations that they are a member of."""

    user: User = field(converter=_user)
    orgs: tuple[Org, ...] = field(default=(), converter=_orgs)
    extra: Mapping[str, Any] = field(factory=dict)

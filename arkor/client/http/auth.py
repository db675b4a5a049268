"""The address of a backend and the token that is sent there."""

from __future__ import annotations

from arkor.client.http.urls import checked_url
from arkor.errors import CredentialsError


class Auth:
    """A backend's address and a fixed token; `source` names the setting that chose this backend."""

    #: Whether the backend is known to create one job per `Idempotency-Key`.
    honours_idempotency_keys = False

    def __init__(self, base_url: str, token: str | None = None, *, source: str = "base_url") -> None:
        self.base_url = checked_url(base_url)
        self.token = checked_token(token)
        self.source = source

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def prepare(self) -> None:
        """Renew a token that is about to expire; called before each request."""

    def refresh(self) -> bool:
        """Update the address when nothing listens there; return whether to retry."""
        return False

    def refresh_token(self, rejected: str | None) -> bool:  # noqa: ARG002 - used by subclasses
        """Replace a token that the backend rejected; return whether to retry."""
        return self.refresh()


def checked_token(token: str | None) -> str | None:
    """Return the token; raise `CredentialsError`, without showing it, if it is malformed."""
    if token is not None and (not isinstance(token, str) or not token.isprintable() or " " in token or not token):
        raise CredentialsError("the token of the credentials is empty or contains characters that no token has")
    return token

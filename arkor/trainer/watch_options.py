"""The arguments of a trainer that concern `wait()`."""

from __future__ import annotations

import inspect
import threading
from pathlib import Path
from typing import Any, Literal

from arkor.callbacks.registry import CallbackRegistry
from arkor.client.auth.credentials import Credentials
from arkor.client.http.urls import checked_url
from arkor.client.streaming.reconnect_policy import ReconnectPolicy
from arkor.errors import InvalidConfig
from arkor.formatting import quote
from arkor.trainer.config_builder import absolute_path

CallbackErrors = Literal["reconnect", "raise", "log"]


class WatchOptions:
    """The checked arguments; raise `InvalidConfig` for a value of the wrong type.

    `cursor` is the id of the last event to skip; `from_now` skips the whole history.
    """

    cursor: str | None = None
    from_now = False

    def __init__(
        self,
        callbacks: Any,
        callback_errors: CallbackErrors,
        abort_signal: threading.Event | None,
        progress: bool | Literal["auto"],
        reconnect: ReconnectPolicy | None,
        *,
        backend: tuple[str | None, Credentials | None, str | Path | None],
    ) -> None:
        base_url, credentials, project_dir = backend
        if callback_errors not in ("reconnect", "raise", "log"):
            raise InvalidConfig("callback_errors", f'must be "reconnect", "raise" or "log", not {callback_errors!r}')
        if abort_signal is not None and (inspect.isclass(abort_signal) or not hasattr(abort_signal, "is_set")):
            raise InvalidConfig("abort_signal", f"must be a threading.Event(), not {quote(abort_signal)}")
        if reconnect is not None and not isinstance(reconnect, ReconnectPolicy):
            raise InvalidConfig("reconnect", f"must be a ReconnectPolicy, not {type(reconnect).__name__}")
        if progress not in ("auto", True, False):
            raise InvalidConfig("progress", f'must be "auto", True or False, not {progress!r}')
        if base_url is not None:
            checked_url(base_url)
        if credentials is not None and not isinstance(credentials, Credentials):
            kind = type(credentials).__name__  # the value may be a token, which must not be shown
            problem = f'must be TokenCredentials("…", "https://…") or another credentials object, not {kind}'
            raise InvalidConfig("credentials", problem)
        if not isinstance(project_dir, (str, Path, type(None))):
            raise InvalidConfig("project_dir", f"must be a folder's path, not {quote(project_dir)}")
        self.base_folder = Path(absolute_path("project_dir", str(project_dir or "."), Path.cwd()))
        self.abort_signal = abort_signal
        self.progress = progress
        self.reconnect = reconnect or ReconnectPolicy()
        self.registry = CallbackRegistry(callbacks)
        self.callback_errors = callback_errors
        self.backend = backend

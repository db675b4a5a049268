"""The connection from Studio to its backend."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from attrs import define, field
from starlette.requests import Request

from arkor.client.api import CloudApiClient
from arkor.client.connect import connect


@define(eq=False)
class BackendClient:
    """The backend of the project in `folder`, connected on first use; thread-safe."""

    folder: Path
    _client: CloudApiClient | None = None
    _lock: threading.Lock = field(factory=threading.Lock)

    def client(self) -> CloudApiClient:
        """Return the client with its scope set, or raise what `connect` raises."""
        with self._lock:
            if self._client is None:
                self._client = connect(project_dir=self.folder)
            return self._client

    def connect_in_background(self) -> None:
        """Start connecting, so that the first page does not wait for all of it."""

        def try_to_connect() -> None:
            with suppress(Exception):  # the first page that needs the client reports the error
                self.client()

        threading.Thread(target=try_to_connect, name="arkor-studio-connect", daemon=True).start()


def client_of(request: Request) -> CloudApiClient:
    """Return the client of the application that serves this request."""
    client: CloudApiClient = request.app.state.backend.client()
    return client

"""The connection from Studio to its backend."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from attrs import define, field

from arkor.client.api import CloudApiClient
from arkor.client.connect import connect


@define(eq=False)
class BackendClient:
    """The backend of the project in `folder`, connected on first use; thread-safe."""

    folder: Path
    _client: CloudApiClient | None = None
    _lock: threading.Lock = field(factory=threading.Lock)

    def client(self) -> CloudApiClient:
        """Return the client with its scope set; start the backend of this machine if needed.

        Raises what `connect` raises, and tries again at the next call.
        """
        with self._lock:
            if self._client is None:
                self._client = connect(project_dir=self.folder)
            return self._client

    def connect_in_background(self) -> None:
        """Start connecting, so that the first page does not wait for all of it."""
        threading.Thread(target=self._try_connect, name="arkor-studio-connect", daemon=True).start()

    def _try_connect(self) -> None:
        with suppress(Exception):  # the first page that needs the client reports the error
            self.client()

"""The one way from Studio to its backend, found when it is first needed and again when finding it failed."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from attrs import define, field

from arkor.client.api import CloudApiClient
from arkor.client.connect import connect


@define(eq=False)
class BackendClient:
    """The backend that the project in `folder` talks to. From any thread."""

    folder: Path
    _client: CloudApiClient | None = None
    _lock: threading.Lock = field(factory=threading.Lock)

    def client(self) -> CloudApiClient:
        """The client, with its scope set; starts the backend of this machine if that is the one.

        Raises what `connect` raises.
        """
        with self._lock:
            if self._client is None:
                self._client = connect(project_dir=self.folder)
            return self._client

    def connect_in_background(self) -> None:
        """Begin to look for the backend, so that the first page need not wait for all of it."""
        threading.Thread(target=self._try_connect, name="arkor-studio-link", daemon=True).start()

    def _try_connect(self) -> None:
        with suppress(Exception):  # the first page that needs it asks again, and says why not
            self.client()

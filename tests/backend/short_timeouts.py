"""`python -m tests.backend.short_timeouts …`: the backend with short timeouts and few connections."""

from __future__ import annotations

import sys

from arkor.backend import __main__ as backend
from arkor.backend.http import body, connection

connection.HEAD_SECONDS = 1.0
connection.MAX_CONNECTIONS = 30
body.BODY_SECONDS = 1.0

if __name__ == "__main__":
    sys.exit(backend.main())

"""`python -m tests.backend.without_polling …` is the backend without its poll: only notifications show that a log grows."""

from __future__ import annotations

import sys

from arkor.backend import __main__ as backend
from arkor.backend.runs import log_notifier

log_notifier._POLL_SECONDS = 3600.0

if __name__ == "__main__":
    sys.exit(backend.main())

"""The objects that the routes share."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import cast

from attrs import field, frozen
from starlette.requests import Request

from arkor.backend.http.recent_items import RecentItems
from arkor.backend.inference.service import InferenceService
from arkor.backend.preflight.service import CheckService
from arkor.backend.runs.checkpoints import CheckpointPins
from arkor.backend.runs.log_notifier import LogNotifier
from arkor.backend.runs.log_watcher import LogWatcher
from arkor.backend.store.conversations import ConversationStore
from arkor.backend.store.store import Store
from arkor.backend.workers.supervisor import Supervisor


@frozen
class AppState:
    """Everything that lives as long as the application.

    `operator_token` authenticates as the owner. `open_to_own_user` allows processes of the server's
    own user to sign in without a token. `open_streams` counts the open event streams by user id.
    """

    home: Path
    engine: str
    store: Store
    supervisor: Supervisor
    inference: InferenceService
    check_service: CheckService
    conversations: ConversationStore
    checkpoint_pins: CheckpointPins
    log_notifier: LogNotifier
    log_watcher: LogWatcher
    operator_token: str | None = field(repr=False)
    open_to_own_user: bool
    submission_lock: threading.Lock = field(factory=threading.Lock)
    open_streams: Counter[str] = field(factory=Counter)
    recent_items: RecentItems = field(factory=RecentItems)


def app_state(request: Request) -> AppState:
    return cast("AppState", request.app.state.arkor)

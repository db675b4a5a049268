"""Data and settings of the benchmarks: messages of bank customers with one of ten intents."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

#: The default folder of banking77: next to the repository.
DATA = Path(__file__).parents[3] / "shared" / "data" / "banking77"

INTENTS = (
    "card_arrival",
    "lost_or_stolen_card",
    "request_refund",
    "declined_card_payment",
    "exchange_rate",
    "change_pin",
    "transaction_charged_twice",
    "terminate_account",
    "top_up_failed",
    "passcode_forgotten",
)

SYSTEM = "Name the intent of the customer's message."

STEPS = 60
BATCH_SIZE = 8
LEARNING_RATE = 1e-3
RANK = ALPHA = 16


def question(text: str) -> list[dict[str, str]]:
    """Return the messages of a prompt."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def labelled(folder: Path, part: str) -> Iterator[tuple[str, str]]:
    """Return text and intent of the rows of `part` ("train" or "test") with the intents."""
    with (folder / f"{part}.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["category"] in INTENTS:
                yield row["text"].strip(), row["category"]


def training_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the training rows as chats."""
    return [
        {"messages": [*question(text), {"role": "assistant", "content": intent}]}
        for text, intent in labelled(folder, "train")
    ]


def test_rows(folder: Path, count: int) -> list[tuple[str, str]]:
    """Return `count` held-out rows, evenly distributed over the intents."""
    rows = list(labelled(folder, "test"))
    by_intent = [[row for row in rows if row[1] == intent] for intent in INTENTS]
    return [row for turn in zip_longest(*by_intent) for row in turn if row is not None][:count]


test_rows.__test__ = False  # type: ignore[attr-defined]  # rows to test on, and no test

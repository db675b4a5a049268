"""What the scripts of the Python clients share; it runs in the environments of the clients.

A script defines its calls with `@call("name")`. Each runs at once, and one line is printed for it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

BASE_URL, API_KEY, MODEL = (os.environ[name] for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "MODEL"))

#: As in the rows that the model was trained on; the answer is known.
SYSTEM = "Sort the support ticket. Answer with JSON: category and urgency."
TICKET = "My parcel was meant to come on Friday and the tracking page hasn't changed since."
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": TICKET}]

#: One prompt of a question, for clients of text completions: the chat template in plain text.
PROMPT = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{TICKET}<|im_end|>\n<|im_start|>assistant\n"


def call(name: str) -> Callable[[Callable[[], Any]], None]:
    """Run the decorated function, and print whether it raised."""

    def run(function: Callable[[], Any]) -> None:
        try:
            note = function()
        except Exception as error:  # noqa: BLE001 - any exception is a failed call
            print(f"FAILED\t{name}\t{type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
            if "-v" in sys.argv:
                traceback.print_exc()
        else:
            print(f"ok\t{name}\t{' '.join(str(note or '').split())[:160]}", flush=True)

    return run


def triage(text: str) -> str:
    """Return the answer of the tuned model, which must be JSON of the two fields."""
    answer = json.loads(text)
    assert set(answer) == {"category", "urgency"}, text
    assert answer["category"] == "delivery", text
    return text

"""Strings on which the starter model's tokenizer is compared with llama.cpp, and the tokens of llama.cpp.

    python -m tests.backend.compute.starter_strings GGUF

writes the digests of `tests/data/starter-tokens.json`. It needs the package `xllamacpp`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

DIGESTS = Path(__file__).parents[2] / "data" / "starter-tokens.json"

#: The number of strings.
COUNT = 2000

_WRITTEN = (
    "\n\n1. one\n2. two\n\n10. ten",
    "a  3",
    "for i in range(10):\n    x = i ** 2\n    y[12] += 3\n\n\n        return 404",
    "\t\t7 tabs\r\n 8",
    "½ ⅔ Ⅷ ٣٤٥ 四二 １２３ ²³ ₄₂",
    "東京は2024年  5月です。\n\n3時",
    "🙂 1  2 👩\u200d👩\u200d👧 3️⃣",
    "it's 5 o'clock, we'll pay $1,234.56 -- don't  9",
    "   ",
    " 1",
    "x\u00a0\u00a05\u2003 6",
)
_PIECES = (
    *"0123456789",
    *(" ", "  ", "   ", "    ", "\n", "\n\n", "\n    ", "\t", "\r\n", "\u00a0", "\u3000"),
    *("1.", "2)", "10", "42", "2024-11-30", "3.14", "1,000", "0x1F", "v2"),
    *("the", " and", "Hello", " world", "I'm", "they'll", "x", "_id", "def f(a1):", "return", "[0]", "{", "}", "=="),
    *("٣", "四", "Ⅷ", "½", "²", "১", "日本", "语言", "한국어", "é", "ß", "Привет", "עברית", "नमस्ते"),
    *("🙂", "👍🏽", "3️⃣", "—", "…", "“", "”", "€", "!", "?", "...", "\\", "/", "#"),
)


def strings() -> Iterator[str]:
    """Yield the same strings on every machine."""
    yield from _WRITTEN
    state = 1
    for _ in range(COUNT - len(_WRITTEN)):
        parts = []
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        for _ in range(2 + (state >> 33) % 14):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            parts.append(_PIECES[(state >> 33) % len(_PIECES)])
        yield "".join(parts)


def digest(tokens: Sequence[int]) -> str:
    """Return 32 bits of a hash of tokens."""
    return hashlib.sha256(json.dumps(list(tokens)).encode()).hexdigest()[:8]


def _tokens_of_llama_cpp(gguf: str) -> Iterator[list[int]]:
    import xllamacpp  # noqa: PLC0415 - not a dependency

    settings = xllamacpp.CommonParams()
    settings.model.path = gguf
    settings.n_ctx = 256
    server = xllamacpp.Server(settings)
    for text in strings():
        body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            yield json.load(response)["tokens"]


if __name__ == "__main__":
    DIGESTS.write_text(json.dumps([digest(tokens) for tokens in _tokens_of_llama_cpp(sys.argv[1])]) + "\n")

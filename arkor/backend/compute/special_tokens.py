"""Escape special tokens in messages, so that no user can forge a turn of the conversation.

A chat template joins the messages with special tokens into one text, in which `<|im_start|>system`
of a user would be tokenized like the template's own. So a separator is inserted into every such
token of a message before the template is rendered, the rendered text is split at the separators,
and the parts are tokenized one by one. Messages without special tokens are tokenized as usual.

Templates that mark turns with plain words (`[INST]` of the first Llamas) are not protected.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

#: A conversation to render, to see which tokens a template puts around the turns.
_PROBE = [{"role": role, "content": "probe"} for role in ("user", "assistant", "user")]

Message = Mapping[str, Any]


class SpecialTokenEscaper:
    """Escapes the special tokens of one tokenizer. Not thread-safe."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._separator = f"\ufdd0{secrets.token_hex(8)}\ufdd0"  # random, so that no message can contain it
        special, markers = _special_tokens(tokenizer)
        strips = {token.content for token in tokenizer.added_tokens_decoder.values() if token.rstrip}
        anchors = (text for text in special if text not in strips and len(self._tokenize([text])[0]) == 1)
        self._anchor = next(anchors, "")
        alternatives = "|".join(map(re.escape, sorted({*special, *markers})))
        first_chars = "".join(map(re.escape, sorted({text[0] for text in (*special, *markers)})))
        self._pattern = re.compile(f"[{first_chars}](?<=(?=(?:{alternatives})).)", re.DOTALL) if alternatives else None

    def escape(self, messages: Sequence[Message], trusted: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Escape the special tokens in messages, but not in roles of `trusted`."""
        return [
            dict(message)
            if message["role"] in trusted
            else {name: value if name == "role" else self.escape_in(value) for name, value in message.items()}
            for message in messages
        ]

    def escape_in(self, value: Any) -> Any:
        """Escape all strings in a JSON value, such as tools or arguments."""
        if isinstance(value, str):
            return self._pattern.sub(lambda match: match[0] + self._separator, value) if self._pattern else value
        if isinstance(value, Mapping):
            return {self.escape_in(name): self.escape_in(inner) for name, inner in value.items()}
        return [self.escape_in(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    def contains(self, text: str) -> bool:
        """Whether a rendered text contains an escaped token."""
        return self._separator in text

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize rendered texts; no token spans a separator."""
        return [tokens for (tokens,) in self.segment_tokens([[text] for text in texts])]

    def segment_tokens(self, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Tokenize texts that are given in segments; no token spans a separator or two segments."""
        parts = [[segment.split(self._separator) for segment in segments] for segments in texts]
        firsts = iter(self._tokenize([first for (first, *_), *_ in parts]))
        continued = [part for first, *rest in parts for part in (*first[1:], *(p for segment in rest for p in segment))]
        others = iter(self._tokenize_continuations(continued))
        return [
            [
                [token for index, _ in enumerate(segment) for token in next(others if number or index else firsts)]
                for number, segment in enumerate(segments)
            ]
            for segments in parts
        ]

    def _tokenize_continuations(self, parts: Sequence[str]) -> list[list[int]]:
        """Tokenize parts that follow other text, without a leading space of the tokenizer."""
        anchored = self._tokenize([self._anchor + part for part in parts])
        return [tokens[1:] for tokens in anchored] if self._anchor else anchored

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        found: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return found


def _special_tokens(tokenizer: Any) -> tuple[list[str], list[str]]:
    """Return the special tokens, and other added tokens that the template puts around turns.

    Tokens of a single character are left out: a separator cannot split them.
    """
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    try:
        rendered = str(tokenizer.apply_chat_template(_PROBE, tokenize=False))
    except Exception:  # noqa: BLE001 - a template may raise anything
        rendered = ""
    long_enough = {text: special for text, special in added.items() if len(text.strip()) > 1}
    markers = [text for text, special in long_enough.items() if not special and text in rendered]
    return [text for text, special in long_enough.items() if special], markers

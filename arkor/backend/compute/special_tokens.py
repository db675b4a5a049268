"""What people write in a message stays text, even where it spells a token by which a model tells its turns apart.

A chat template puts such tokens around the messages and everything becomes one text, in which `<|im_start|>system` of
a user would be as good as the template's own. So every such token in what people wrote gets a seam in its middle
before the template is rendered; at the seams the text is taken apart, and no token is read across one. Messages in
which no such token is spelled have no seam, and are tokenized as ever.

A template whose marks are no tokens of their own but plain words (`[INST]` in the first Llamas) cannot be helped.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

#: A conversation of every turn that there is; which tokens a template puts around those, it shows.
_PROBE = [{"role": role, "content": "probe"} for role in ("user", "assistant", "user")]

Message = Mapping[str, Any]


class SpecialTokenEscaper:
    """The seams for one tokenizer, which is used by one thread at a time."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._separator = f"\ufdd0{secrets.token_hex(8)}\ufdd0"  # no message can foresee it
        special, markers = _special_tokens(tokenizer)
        self._anchor = next((text for text in special if len(self._tokenize([text])[0]) == 1), "")
        alternatives = "|".join(map(re.escape, sorted({*special, *markers})))
        first_chars = "".join(map(re.escape, sorted({text[0] for text in (*special, *markers)})))
        self._pattern = re.compile(f"[{first_chars}](?<=(?=(?:{alternatives})).)", re.DOTALL) if alternatives else None

    def escape(self, messages: Sequence[Message], trusted: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The messages with a seam in each token that they spell; those of the roles in `trusted` as they are."""
        return [
            dict(message)
            if message["role"] in trusted
            else {name: value if name == "role" else self.escape_in(value) for name, value in message.items()}
            for message in messages
        ]

    def escape_in(self, value: Any) -> Any:
        """The same in whatever JSON holds text: tools, arguments."""
        if isinstance(value, str):
            return self._pattern.sub(lambda match: match[0] + self._separator, value) if self._pattern else value
        if isinstance(value, Mapping):
            return {self.escape_in(name): self.escape_in(inner) for name, inner in value.items()}
        return [self.escape_in(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    def contains(self, text: str) -> bool:
        return self._separator in text

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Of rendered texts, each as the tokenizer has it where there is no seam in it."""
        pieces = [text.split(self._separator) for text in texts]
        firsts = self._tokenize([first for first, *_ in pieces])
        others = iter(self._tokens_after_separator([piece for _, *rest in pieces for piece in rest]))
        return [
            [*first, *(token for _ in rest for token in next(others))]
            for first, (_, *rest) in zip(firsts, pieces, strict=True)
        ]

    def _tokens_after_separator(self, pieces: Sequence[str]) -> list[list[int]]:
        """Of what stands behind seams: in the middle of a text, where no tokenizer puts a blank of its own."""
        begun = self._tokenize([self._anchor + piece for piece in pieces])
        return [tokens[1:] for tokens in begun] if self._anchor else begun

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        found: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return found


def _special_tokens(tokenizer: Any) -> tuple[list[str], list[str]]:
    """The special tokens, and others that the template puts around turns. One of a single letter has no middle."""
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    try:
        rendered = str(tokenizer.apply_chat_template(_PROBE, tokenize=False))
    except Exception:  # noqa: BLE001 - a template is a program of the model's makers: it may raise anything
        rendered = ""
    long_enough = {text: special for text, special in added.items() if len(text.strip()) > 1}
    markers = [text for text, special in long_enough.items() if not special and text in rendered]
    return [text for text, special in long_enough.items() if special], markers

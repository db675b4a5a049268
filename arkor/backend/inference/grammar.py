"""Compile constraints to token masks with llguidance.

Each grammar is first compiled in a process with limited time and memory (`grammar_sandbox.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import llguidance
import llguidance.hf
import numpy as np
import torch

from arkor.backend.inference import grammar_sandbox
from arkor.backend.inference.messages import Constraint, GenerationError
from arkor.formatting import one_line

#: Elapsed seconds after which the sandbox is killed, even if it got no CPU time.
COMPILE_TIMEOUT_SECONDS = 20.0

#: The number of compiled grammars that are cached for each base model.
MAX_CACHED_GRAMMARS = 64

_LIMITS = llguidance.LLParserLimits(max_lexer_states=50_000, verbose_errors=False)

#: Computes the masks of a batch in parallel.
_EXECUTOR = llguidance.LLExecutor()


class GrammarMatcher:
    """Tracks which tokens may follow in one answer."""

    def __init__(self, matcher: Any, constraint: Constraint) -> None:
        self.matcher = matcher
        self.constraint = constraint

    def consume(self, token: int, *, ends: bool = False) -> None:
        """Append a token, which may end the answer. Raise `GenerationError`."""
        if not ends:
            self.matcher.consume_token(token)
        self.raise_on_error()

    def raise_on_error(self) -> None:
        """Raise `GenerationError` if no token can follow."""
        if self.matcher.is_error():
            raise grammar_error(self.constraint, self.matcher.get_error())

    @property
    def finished(self) -> bool:
        """Whether the constraint is satisfied and nothing can follow."""
        return bool(self.matcher.is_stopped())


class GrammarCompiler:
    """Compiles constraints for one base model, with a cache. Thread-safe."""

    def __init__(self, tokenizer: Any, vocabulary: int, stop_tokens: Sequence[int]) -> None:
        self._build = (tokenizer, vocabulary, list(stop_tokens))
        self._tokens: Any = None
        self._cache: OrderedDict[str, Any] = OrderedDict()
        self._lock = Lock()

    def matcher(self, constraint: Constraint) -> GrammarMatcher:
        """Return a new matcher. Raise `GenerationError` (400) for an invalid constraint."""
        self._tokenizer()
        key = json.dumps([constraint.kind, constraint.value, constraint.whitespace], sort_keys=False)
        with self._lock:
            compiled = self._cache.get(key)
        if compiled is None:
            compiled = self._compile(constraint)
        with self._lock:
            self._cache[key] = compiled
            self._cache.move_to_end(key)
            while len(self._cache) > MAX_CACHED_GRAMMARS:
                self._cache.popitem(last=False)
            return GrammarMatcher(compiled.deep_copy(), constraint)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token. Raise `GenerationError` for an unsupported tokenizer."""
        found: bytes = self._tokenizer().decode_bytes([token])
        return found

    def _tokenizer(self) -> Any:
        with self._lock:
            if self._tokens is None:  # takes some tenths of a second
                self._tokens = _tokens(*self._build)
            return self._tokens

    def _compile(self, constraint: Constraint) -> Any:
        matcher = llguidance.LLMatcher(self._tokens, validated_grammar(constraint), log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # detects unsatisfiable grammars
        GrammarMatcher(matcher, constraint).raise_on_error()
        return matcher


def validated_grammar(constraint: Constraint) -> str:
    """Return the grammar after compiling it in the sandbox. Raise `GenerationError` (400)."""
    request = {"kind": constraint.kind, "value": constraint.value, "whitespace": constraint.whitespace}
    command = [sys.executable, "-I", str(Path(grammar_sandbox.__file__))]
    pipes: dict[str, Any] = {"input": json.dumps(request), "capture_output": True, "text": True}
    try:
        completed = subprocess.run(command, check=False, timeout=COMPILE_TIMEOUT_SECONDS, **pipes)  # noqa: S603 - a file of this package
    except subprocess.TimeoutExpired:
        output = ""
    else:
        output = completed.stdout if completed.returncode == 0 else ""
    if not output:
        limit = f"{grammar_sandbox.CPU_SECONDS:g} s"
        raise grammar_error(constraint, f"it is too complex: compiling it takes more than {limit}. Make it smaller.")
    result = json.loads(output)
    if "error" in result:
        raise grammar_error(constraint, result["error"])
    return str(result["grammar"])


def allowed_tokens(matchers: Sequence[GrammarMatcher | None], vocabulary: int) -> torch.Tensor:
    """Return the allowed next tokens, bool (answers, vocabulary); all without a matcher."""
    word_count = (vocabulary + 31) // 32
    masks = np.full((len(matchers), word_count), -1, dtype=np.int32)
    constrained = [(matcher.matcher, row) for row, matcher in enumerate(matchers) if matcher is not None]
    _EXECUTOR.unsafe_compute_mask_ptr(constrained, masks.ctypes.data, word_count * 4, len(matchers))
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")[:, :vocabulary]
    bits[~bits.any(axis=1)] = 1  # after an error, which consume() raises
    return torch.from_numpy(bits).bool()


def grammar_error(constraint: Constraint, error: str) -> GenerationError:
    """Return a 400 with llguidance's message as far as it is readable."""
    reason = one_line(error.replace("<non-verbose/>", ""), 300).rstrip(".")
    if "NoExtension" in reason or "Unsatisfiable" in reason:
        reason = "no answer can satisfy it" + (f" ({reason})" if "Unsatisfiable" in reason else "")
    code = "invalid_schema" if constraint.kind in ("json", "lark") else "invalid_constraint"
    return GenerationError(400, code, f"{reason}.", field=constraint.field)


def _tokens(tokenizer: Any, vocabulary: int, stop_tokens: list[int]) -> Any:
    try:
        return llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=stop_tokens or None)
    except Exception as error:  # unsupported tokenizers raise various exceptions
        problem = "The tokenizer of this model supports neither constrained answers nor log-probabilities."
        raise GenerationError(400, "constraints_not_configured", problem, remedy=str(error)) from error

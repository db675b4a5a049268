"""A constraint → a guide that says, token by token, what an answer may go on with. By llguidance.

What a constraint may be is in `constraints.py`, what a call looks like in `tool_calls.py`. Compiling is bounded: it is
tried in a process of its own first (`grammar_sandbox.py`).
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

#: When a trial is given up that gets no time on the processor, in seconds.
COMPILE_TIMEOUT_SECONDS = 20.0

#: Compiled grammars that are kept for each base.
MAX_CACHED_GRAMMARS = 64

_LIMITS = llguidance.LLParserLimits(max_lexer_states=50_000, verbose_errors=False)

#: Computes the masks of several answers at once.
_EXECUTOR = llguidance.LLExecutor()


class GrammarMatcher:
    """Holds one answer to its constraint."""

    def __init__(self, matcher: Any, constraint: Constraint) -> None:
        self.matcher = matcher
        self._constraint = constraint

    def consume(self, token: int, *, ends: bool = False) -> None:
        """The answer goes on with that token, or ends with it. Raises `GenerationError` when there is no way on."""
        if not ends:
            self.matcher.consume_token(token)
        self.raise_on_error()

    def raise_on_error(self) -> None:
        """Raise `GenerationError` when there is no way on."""
        if self.matcher.is_error():
            raise grammar_error(self._constraint, self.matcher.get_error())

    @property
    def finished(self) -> bool:
        """Whether the constraint is met and nothing can follow."""
        return bool(self.matcher.is_stopped())


class GrammarCompiler:
    """What was compiled for one base. From any thread."""

    def __init__(self, tokenizer: Any, vocabulary: int, stop_tokens: Sequence[int]) -> None:
        self._build = (tokenizer, vocabulary, list(stop_tokens))
        self._tokens: Any = None
        self._cache: OrderedDict[str, Any] = OrderedDict()
        self._lock = Lock()

    def prepare(self) -> None:
        """Read the vocabulary, which takes some tenths of a second the first time. Raises `GenerationError`."""
        with self._lock:
            if self._tokens is None:
                self._tokens = _tokens(*self._build)

    def matcher(self, constraint: Constraint) -> GrammarMatcher:
        """Compile it, or find it compiled. Raises `GenerationError` (400) for what cannot be."""
        self.prepare()
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

    def _compile(self, constraint: Constraint) -> Any:
        matcher = llguidance.LLMatcher(self._tokens, validated_grammar(constraint), log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what nothing can satisfy shows here
        GrammarMatcher(matcher, constraint).raise_on_error()
        return matcher


def validated_grammar(constraint: Constraint) -> str:
    """The grammar, after it was compiled once where that could do no harm. Raises `GenerationError` (400)."""
    request = {"kind": constraint.kind, "value": constraint.value, "whitespace": constraint.whitespace}
    command = [sys.executable, "-I", str(Path(grammar_sandbox.__file__))]
    pipes: dict[str, Any] = {"input": json.dumps(request), "capture_output": True, "text": True}
    try:
        completed = subprocess.run(command, check=False, timeout=COMPILE_TIMEOUT_SECONDS, **pipes)  # noqa: S603 - our own file
    except subprocess.TimeoutExpired:
        raise _too_complex(constraint) from None
    if completed.returncode != 0:
        raise _too_complex(constraint)
    result = json.loads(completed.stdout)
    if "error" in result:
        raise grammar_error(constraint, result["error"])
    return str(result["grammar"])


def allowed_tokens(matchers: Sequence[GrammarMatcher | None], vocabulary: int) -> torch.Tensor:
    """Which tokens each answer may go on with: (answers, vocabulary), all of them without a guide."""
    word_count = (vocabulary + 31) // 32
    masks = np.full((len(matchers), word_count), -1, dtype=np.int32)
    constrained = [(matcher.matcher, row) for row, matcher in enumerate(matchers) if matcher is not None]
    _EXECUTOR.unsafe_compute_mask_ptr(constrained, masks.ctypes.data, word_count * 4, len(matchers))
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")[:, :vocabulary]
    bits[~bits.any(axis=1)] = 1  # of a guide that is lost, which says so when it is led on
    return torch.from_numpy(bits).bool()


def grammar_error(constraint: Constraint, error: str) -> GenerationError:
    """A 400 in the words of the library, as far as they are a sentence."""
    reason = " ".join(error.replace("<non-verbose/>", "").split())[:300].rstrip(".")
    if "NoExtension" in reason or "Unsatisfiable" in reason:
        reason = "no answer can satisfy it" + (f" ({reason})" if "Unsatisfiable" in reason else "")
    return GenerationError(400, _error_code(constraint), f"{constraint.field}: {reason}.")


def _too_complex(constraint: Constraint) -> GenerationError:
    reason = f"it is too complex: compiling it takes more than {grammar_sandbox.CPU_SECONDS:g} s. Make it smaller."
    return GenerationError(400, _error_code(constraint), f"{constraint.field}: {reason}")


def _error_code(constraint: Constraint) -> str:
    return "invalid_schema" if constraint.kind in ("json", "lark") else "invalid_constraint"


def _tokens(tokenizer: Any, vocabulary: int, stop_tokens: list[int]) -> Any:
    try:
        return llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=stop_tokens or None)
    except Exception as error:  # whatever a tokenizer of another kind makes of it
        sentence = f"The tokenizer of this model is of a kind that no answer can be constrained with: {error}"
        raise GenerationError(400, "constraints_not_configured", sentence) from error

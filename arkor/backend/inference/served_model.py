"""A base model that answers: its tokenizer, chat template, limits and constraints.

Each engine has a subclass with the weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from arkor.backend.inference.grammar import GrammarCompiler
from arkor.backend.inference.messages import GenerationError
from arkor.backend.inference.prompts import PromptBuilder


def weights_mtime(folder: str) -> int:
    """Return when the weights in a folder were last written, in ns; 0 without weights."""
    return max((file.stat().st_mtime_ns for file in Path(folder).glob("*.safetensors")), default=0)


def size_on_disk(folder: str) -> int:
    """Return the size of the weights in a folder in bytes."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def check_adapter_files(folder: str) -> None:
    """Require a complete safetensors file; without it, PEFT unpickles a `.bin` file."""
    try:
        with safe_open(str(Path(folder, "adapter_model.safetensors")), "pt") as file:
            file.keys()
    except (OSError, SafetensorError) as error:
        problem = "The adapter cannot be read."
        raise GenerationError(409, "adapter_unusable", problem, remedy=f"Its folder is {folder}: {error}") from error


class ServedModel(ABC):
    """A base model in memory, with adapters that can be switched, for one engine."""

    #: The engine that computes the answers, as in `ARKOR_SERVING_ENGINE`.
    engine: str

    #: Whether the weights were damaged, so that they must be loaded again.
    broken = False

    def __init__(self, name: str, tokenizer: Any, config: Any, generation_config: Any, vocabulary: int) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.context: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.prompts = PromptBuilder(tokenizer, self.context)
        self._generation_config = generation_config
        self.stop_tokens = self._stop_tokens()
        self.vocabulary = vocabulary
        self.grammars = GrammarCompiler(tokenizer, self.vocabulary, sorted(self.stop_tokens))
        self._token_bytes: dict[int, tuple[int, ...]] = {}

    @property
    @abstractmethod
    def bytes(self) -> int:
        """The size of the base and its adapters in memory."""

    def missing_tokens(self, adapter: str | None, prompt: Sequence[int]) -> int:
        """Return how many tokens of a prompt are to be computed, if no answer began like it."""
        del adapter
        return len(prompt)

    @property
    @abstractmethod
    def threads_change_rounding(self) -> bool:
        """Whether the same tokens may get other logits with another number of threads."""

    @abstractmethod
    def set_threads(self, count: int) -> None:
        """Compute with that number of threads."""

    def token_bytes(self, token: int) -> tuple[int, ...]:
        """Return the bytes of a token. Raise `GenerationError` for an unsupported tokenizer."""
        if token not in self._token_bytes:
            self._token_bytes[token] = tuple(self.grammars.token_bytes(token))
        return self._token_bytes[token]

    @property
    def repetition_penalty(self) -> float:
        """The default of the model's `generation_config.json`; 1 has no effect."""
        return float(getattr(self._generation_config, "repetition_penalty", None) or 1.0)

    def _stop_tokens(self) -> frozenset[int]:
        """Return the end tokens of the model and of its chat template, which training teaches."""
        eos_tokens = getattr(self._generation_config, "eos_token_id", None)
        listed = eos_tokens if isinstance(eos_tokens, (list, tuple)) else [eos_tokens]
        tokens = (*listed, self.tokenizer.eos_token_id, *self.prompts.end_token_ids)
        return frozenset(token for token in tokens if token is not None)

"""Models, adapters and the tokens of answers in llama.cpp."""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int8, c_int32, c_uint8, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from attrs import define, field

from arkor.backend.inference.llama_cpp.library import FP16, FP32, EngineUnavailable, Tokens, load_library

#: A context has room for a multiple of this number of tokens in each sequence.
GRANULARITY = 256

#: Memory in bytes that must be left for the computation when a context is created.
MEMORY_MARGIN = 64 * 2**20

#: Tokens that llama.cpp computes at once.
COMPUTED_TOKENS = 512

#: Sequences that are kept after their answers have ended; after concurrent answers, more are.
MAX_KEPT = 2

#: A prompt continues a sequence that begins with at least this number of its tokens.
MIN_SHARED_TOKENS = 8


class NativeModel:
    """A model that is loaded from a GGUF file, which llama.cpp maps into memory."""

    def __init__(self, file: Path) -> None:
        self.library = load_library()
        self.pointer: int | None = self.library.llama_model_load_from_file(
            str(file).encode(), self.library.llama_model_default_params()
        )
        if self.pointer is None:
            raise EngineUnavailable(f"llama.cpp cannot load {file}.")
        vocabulary = self.library.llama_model_get_vocab(self.pointer)
        self.vocabulary: int = self.library.llama_vocab_n_tokens(vocabulary)
        self.bytes: int = self.library.llama_model_size(self.pointer)

    @property
    def bytes_of_a_token(self) -> int:
        """The size of the keys and values of a token in 16 bits."""
        library = self.library
        width = library.llama_model_n_embd(self.pointer) * library.llama_model_n_head_kv(self.pointer)
        return int(4 * library.llama_model_n_layer(self.pointer) * width // library.llama_model_n_head(self.pointer))

    def load_adapter(self, file: Path) -> int:
        """Load an adapter into memory; return its pointer, which is valid as long as the model."""
        pointer: int | None = self.library.llama_adapter_lora_init(self.pointer, str(file).encode())
        if pointer is None:
            raise EngineUnavailable(f"llama.cpp cannot load the adapter {file}.")
        return pointer

    def free_adapter(self, pointer: int) -> None:
        """Free an adapter that no context uses."""
        self.library.llama_adapter_lora_free(pointer)

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a text as llama.cpp's own tokenizer sees it, special tokens included."""
        data = text.encode()
        tokens = (c_int32 * (len(data) + 8))()
        vocabulary = self.library.llama_model_get_vocab(self.pointer)
        count = self.library.llama_tokenize(vocabulary, data, len(data), tokens, len(tokens), True, True)
        return list(tokens[:count])

    def __del__(self) -> None:
        if getattr(self, "pointer", None) is not None:
            self.library.llama_model_free(self.pointer)
            self.pointer = None


@define
class _Slot:
    """A sequence: the tokens whose keys and values are stored. They outlive the answer.

    `closed` is greater for a sequence that was closed later.
    """

    tokens: list[int] = field(factory=list)
    in_use: bool = False
    closed: int = 0


class Context:
    """The keys and values of several sequences that are computed with one adapter, or none.

    Its memory is allocated for a number of sequences and for a number of tokens in each of them. It
    grows by moving the sequences to a larger context. A sequence that was closed is kept until it
    is needed: a prompt that begins like it continues it.

    Keys and values take 16 bits a number, with `fp32` 32 bits.
    """

    def __init__(self, model: NativeModel, adapter: int | None = None, *, fp32: bool = False) -> None:
        self._model = model
        self._library = model.library
        self._fp32 = fp32
        self.adapter = adapter
        self._slots: list[_Slot] = []
        self._closed = 0
        self._capacity = (0, 0)  # sequences, tokens of each
        self._pointer: int | None = None
        self._threads = 1

    @property
    def idle(self) -> bool:
        """Whether no sequence is in use."""
        return not any(slot.in_use for slot in self._slots)

    def open(self, prompt: Sequence[int] = (), *, reuse: bool = True) -> tuple[int, int]:
        """Return the number of a sequence, and how many tokens of the prompt it has already.

        At least one is left to compute. Without `reuse`, the sequence is empty.
        """
        free = {
            number: _common_length(slot.tokens, prompt) if reuse else 0
            for number, slot in enumerate(self._slots)
            if not slot.in_use
        }
        if not free or (max(free.values()) < MIN_SHARED_TOKENS and len(free) < MAX_KEPT):
            free = {len(self._slots): 0}
            self._slots.append(_Slot())
        number = max(free, key=lambda one: (free[one], -self._slots[one].closed))
        kept = min(free[number], len(prompt) - 1) if free[number] >= MIN_SHARED_TOKENS else 0
        self._truncate(number, kept)
        self._slots[number].in_use = True
        return number, kept

    def shared_tokens(self, prompt: Sequence[int]) -> int:
        """Return with how many tokens of the prompt a sequence that is not in use begins."""
        lengths = (_common_length(slot.tokens, prompt) for slot in self._slots if not slot.in_use)
        return max(lengths, default=0)

    def close(self, sequence: int) -> None:
        """End the use of a sequence."""
        self._closed += 1
        self._slots[sequence].in_use, self._slots[sequence].closed = False, self._closed

    def discard(self, sequence: int) -> None:
        """End the use of a sequence whose keys and values may be wrong."""
        self._truncate(sequence, 0)
        self.close(sequence)

    def set_threads(self, count: int) -> None:
        """Compute with that number of threads."""
        self._threads = count
        if self._pointer is not None:
            self._library.llama_set_n_threads(self._pointer, count, count)

    def decode(self, rows: Sequence[tuple[int, Sequence[int]]], *, keep_all: bool) -> torch.Tensor:
        """Append tokens to sequences; return logits, fp32 (sequences × tokens, vocabulary).

        They follow the last token of each sequence, with `keep_all` every token. The next call
        overwrites them.
        """
        self._reserve(rows)
        count = sum(len(tokens) for _, tokens in rows)
        lengths = [len(self._slots[sequence].tokens) for sequence, _ in rows]
        status = self._library.llama_decode(self._pointer, _batch(rows, lengths, count, keep_all=keep_all))
        if status != 0:
            for sequence, _ in rows:
                self._truncate(sequence, 0)
            raise EngineUnavailable(f"llama.cpp cannot decode: status {status}.")
        for sequence, tokens in rows:
            self._slots[sequence].tokens += tokens
        pointer = self._library.llama_get_logits(self._pointer)
        outputs = count if keep_all else len(rows)
        return torch.from_numpy(np.ctypeslib.as_array(pointer, (outputs, self._model.vocabulary)))

    def repeat_last(self, sequence: int) -> torch.Tensor:
        """Compute the last token of a sequence again; return the logits after it."""
        last = self._slots[sequence].tokens[-1]
        self._truncate(sequence, len(self._slots[sequence].tokens) - 1)
        return self.decode([(sequence, [last])], keep_all=False)[0]

    def insert(
        self, sequence: int, tokens: Sequence[int], keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]
    ) -> None:
        """Fill an empty sequence with tokens whose keys and values are known.

        They are fp16, (tokens, size), by layer. Raise `EngineUnavailable` if llama.cpp stores them
        in another format than expected, which is seen from the state of one token.
        """
        self._reserve([(sequence, tokens)])
        self.decode([(sequence, tokens[:1])], keep_all=False)
        state = self._read_state(sequence)
        own = state[12 + 4 * sequence : len(state) - 4 * (self._capacity[0] - sequence - 1)]
        packed = _pack_state(sequence, keys, values, own)
        sequences = self._capacity[0]
        filled = state[:8] + struct.pack("I", sequences) + packed + bytes(4 * (sequences - 1))
        self._truncate(sequence, 0)
        self._store(self._pointer, sequence, filled)
        self._slots[sequence].tokens = list(tokens)

    def _truncate(self, sequence: int, length: int) -> None:
        """Remove the tokens of a sequence from that length on."""
        del self._slots[sequence].tokens[length:]
        if self._pointer is not None and sequence < self._capacity[0]:
            memory = self._library.llama_get_memory(self._pointer)
            self._library.llama_memory_seq_rm(memory, sequence, length, -1)

    def _reserve(self, rows: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Make room for the tokens; the capacity at least doubles when it is exceeded."""
        sequences, tokens = self._capacity
        count = max(sequence for sequence, _ in rows) + 1
        length = max(len(self._slots[sequence].tokens) + len(new) for sequence, new in rows)
        if count <= sequences and length <= tokens:
            return
        if count > sequences:
            sequences = max(count, min(2 * sequences, 8))
        if length > tokens:
            tokens = -(-max(length + GRANULARITY // 2, 2 * tokens) // GRANULARITY) * GRANULARITY
        self._resize(sequences, tokens)

    def _resize(self, sequences: int, tokens: int) -> None:
        """Create a context of that size and move the sequences to it."""
        library = self._library
        self._require_memory(sequences, tokens)
        params = library.llama_context_default_params()
        params.n_ctx, params.n_seq_max = sequences * tokens, sequences
        if self._fp32:
            params.type_k = params.type_v = FP32
            params.flash_attn_type = 0  # its results are wrong with fp32 in build 11549
        pointer: int | None = library.llama_init_from_model(self._model.pointer, params)
        if pointer is None:
            raise MemoryError(f"{sequences} sequences of {tokens} tokens")
        try:
            self._check_size(pointer, sequences, tokens)
            self._activate(pointer)
            self._copy_sequences(pointer, sequences)
        except Exception:
            library.llama_free(pointer)
            raise
        self._free()
        self._pointer, self._capacity = pointer, (sequences, tokens)
        self.set_threads(self._threads)

    def _require_memory(self, sequences: int, tokens: int) -> None:
        """Raise `MemoryError` if a context may not fit: llama.cpp would end the process."""
        used = sequences * tokens * self._model.bytes_of_a_token * (2 if self._fp32 else 1) + MEMORY_MARGIN
        reserved = COMPUTED_TOKENS * 4 * (self._model.vocabulary + tokens)  # logits and a mask, mostly unused
        try:
            mmap.mmap(-1, used + reserved).close()
        except (OSError, ValueError) as error:
            raise MemoryError(f"{sequences} sequences of {tokens} tokens") from error
        if psutil.virtual_memory().available < used:
            raise MemoryError(f"{sequences} sequences of {tokens} tokens")

    def _check_size(self, pointer: int, sequences: int, tokens: int) -> None:
        library = self._library
        if library.llama_n_ctx_seq(pointer) < tokens or library.llama_n_seq_max(pointer) < sequences:
            raise EngineUnavailable("llama.cpp has created a context of another size.")

    def _activate(self, pointer: int) -> None:
        if self.adapter is None:
            return
        adapters, scales = (c_void_p * 1)(self.adapter), (c_float * 1)(1.0)
        if self._library.llama_set_adapters_lora(pointer, adapters, 1, scales) != 0:
            raise EngineUnavailable("llama.cpp cannot activate the adapter.")

    def _copy_sequences(self, target: int, sequences: int) -> None:
        for sequence, slot in enumerate(self._slots):
            if slot.tokens and self._pointer is not None:
                self._write_state(target, sequences, sequence, self._read_state(sequence))

    def _read_state(self, sequence: int) -> bytes:
        """Return the keys and values of a sequence as llama.cpp stores them."""
        size = self._library.llama_state_seq_get_size(self._pointer, sequence)
        data = (c_uint8 * size)()
        if self._library.llama_state_seq_get_data(self._pointer, data, size, sequence) != size:
            raise EngineUnavailable("llama.cpp cannot copy a sequence.")
        return bytes(data)

    def _write_state(self, pointer: int, sequences: int, sequence: int, state: bytes) -> None:
        """Store the state of a sequence in a context for another number of sequences.

        It begins with two words and the number of sequences; for each of these, the number of
        tokens follows, 0 for the others, and the tokens' data.
        """
        (count,) = struct.unpack_from("I", state, 8)
        own = state[12 + 4 * sequence : len(state) - 4 * (count - sequence - 1)]
        adjusted = state[:8] + struct.pack("I", sequences) + own + bytes(4 * (sequences - 1))
        self._store(pointer, sequence, adjusted)

    def _store(self, pointer: int | None, sequence: int, state: bytes) -> None:
        data = (c_uint8 * len(state)).from_buffer_copy(state)
        if self._library.llama_state_seq_set_data(pointer, data, len(state), sequence) != len(state):
            raise EngineUnavailable("llama.cpp cannot store a sequence.")

    def _free(self) -> None:
        if self._pointer is not None:
            self._library.llama_free(self._pointer)
            self._pointer, self._capacity = None, (0, 0)

    def __del__(self) -> None:
        if hasattr(self, "_pointer"):
            self._free()


def _pack_state(sequence: int, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor], example: bytes) -> bytes:
    """Return the data of a sequence in a state, as in an example with one token.

    It has the number of tokens; the position, the number of sequences and the sequence of each; a
    head; and for keys, then for values, by layer: the number format, the bytes of a token, and the
    numbers. Raise `EngineUnavailable` if the example has another form.
    """
    size = keys[0].shape[1] * keys[0].itemsize
    layer_head = struct.pack("=iQ", FP16, size)
    first = len(example) - (len(keys) + len(values)) * (len(layer_head) + size)
    starts = (example[:16], example[first : first + len(layer_head)])
    if first < 16 or starts != (struct.pack("=IiIi", 1, 0, 1, sequence), layer_head):
        raise EngineUnavailable("llama.cpp stores keys and values in an unknown format.")
    count = len(keys[0])
    cells = b"".join(struct.pack("=iIi", position, 1, sequence) for position in range(count))
    parts = [struct.pack("=I", count), cells, example[16:first]]
    for layer in (*keys, *values):
        parts += [layer_head, layer.contiguous().numpy().tobytes()]
    return b"".join(parts)


def _common_length(tokens: Sequence[int], prompt: Sequence[int]) -> int:
    """Return with how many equal tokens two sequences begin."""
    pairs = enumerate(zip(tokens, prompt, strict=False))
    return next((number for number, (one, other) in pairs if one != other), min(len(tokens), len(prompt)))


def _batch(rows: Sequence[tuple[int, Sequence[int]]], lengths: Sequence[int], count: int, *, keep_all: bool) -> Tokens:
    """Return the input of `llama_decode` for sequences of these lengths."""
    numbers = (c_int32 * len(rows))(*(sequence for sequence, _ in rows))
    size = ctypes.sizeof(c_int32)
    owners: list[Any] = []
    tokens: list[int] = []
    positions: list[int] = []
    wanted = bytearray()
    for row, ((_, new), length) in enumerate(zip(rows, lengths, strict=True)):
        owner = ctypes.cast(ctypes.addressof(numbers) + row * size, POINTER(c_int32))
        owners += [owner] * len(new)
        tokens += new
        positions += range(length, length + len(new))
        wanted += bytes([keep_all] * (len(new) - 1) + [1])
    batch = Tokens(
        n_tokens=count,
        token=(c_int32 * count)(*tokens),
        pos=(c_int32 * count)(*positions),
        n_seq_id=(c_int32 * count)(*[1] * count),
        seq_id=(POINTER(c_int32) * count)(*owners),
        logits=(c_int8 * count).from_buffer(wanted),
    )
    batch.numbers = numbers  # `owners` are addresses in it
    return batch

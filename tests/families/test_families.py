"""A dozen families against plain transformers; `make test-families` checks all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

#: Family → the layout of its batches.
LAYOUTS = {
    "gemma3": "flat",  # with a vision tower and sliding windows
    "gemma4": "flat",  # the same, with layers that share keys, like E4B
    "qwen3_moe": "flat",
    "gpt_oss": "flat",
    "falcon": "flat",  # its linear layers are of a class of its own
    "glm_moe_dsa": "flat",  # with compressed and indexed keys
    "bloom": "padded",
    "falcon_h1": "padded",
    "qwen3_5_text": "padded",
    "lfm2": "padded",
    "mamba2": "padded",
    "zamba2": "padded",
}


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_family_equals_transformers(tmp_path: Path, family: str) -> None:
    from tests.families.check import check  # noqa: PLC0415 - collecting tests loads no torch

    report = check(family, tmp_path, steps=12)
    assert report.problems == []
    assert report.layout_name == LAYOUTS[family]


@pytest.mark.parametrize("family", ["falcon_h1", "qwen3_moe"])
def test_a_resumed_run_is_equal_bit_for_bit(tmp_path: Path, family: str) -> None:
    from tests.families.check import Bench  # noqa: PLC0415 - as above

    bench = Bench(tmp_path, family)
    whole = bench.run("whole", max_steps=6, save_steps=6)
    stopped = bench.run("stopped", max_steps=6, save_steps=6, stop_at=3)
    resumed = bench.run("resumed", max_steps=6, save_steps=6, checkpoint=stopped.folder / "checkpoints" / "3")
    assert stopped.losses + resumed.losses == whole.losses
    file = Path("final", "adapter_model.safetensors")
    assert (whole.folder / file).read_bytes() == (resumed.folder / file).read_bytes()


def test_an_adapter_of_rwkv_has_the_same_effect_in_answers_as_in_training(tmp_path: Path) -> None:
    """In evaluation, the model divides the weights of some layers, but not those of an adapter."""
    import torch  # noqa: PLC0415 - as above

    from tests.families.check import Bench, randomize_adapter  # noqa: PLC0415 - as above

    bench = Bench(tmp_path, "rwkv")
    config = json.loads((bench.model / "config.json").read_text())
    (bench.model / "config.json").write_text(json.dumps(config | {"rescale_every": 1}))
    trainer = bench.trainer()
    randomize_adapter(trainer.model)
    ids = torch.tensor([trainer.train_dataset[1]["input_ids"]])
    with torch.no_grad():
        trained = trainer.model.train()(input_ids=ids).logits
        answered = trainer.model.eval()(input_ids=ids).logits
    torch.testing.assert_close(answered, trained, rtol=1e-4, atol=1e-4)


def trained_names(bench: Any, **fields: Any) -> set[str]:
    trainer = bench.trainer("names", **fields)
    return {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}


def test_the_experts_of_a_mixture_are_adapted_if_they_are_named(tmp_path: Path) -> None:
    from tests.families.check import Bench, compare_logits, compare_step, randomize_adapter  # noqa: PLC0415 - as above

    bench = Bench(tmp_path, "qwen3_moe")
    trainer = bench.trainer(lora_target_modules=["q_proj", "experts"])
    names = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert any("experts" in name for name in names)
    assert all("experts" in name or "q_proj" in name for name in names)
    assert not any("gate.lora" in name or "router" in name for name in names)
    trainer.choose_layout()
    randomize_adapter(trainer.model)
    loss, gradient = compare_step(bench, trainer, tmp_path / "adapter")
    assert (loss, gradient) == (pytest.approx(0, abs=1e-4), pytest.approx(0, abs=1e-4))
    assert compare_logits(bench, trainer, tmp_path / "adapter") < 1e-4


def test_a_tower_is_adapted_only_if_it_is_named(tmp_path: Path) -> None:
    from tests.families.check import Bench  # noqa: PLC0415 - as above

    bench = Bench(tmp_path, "gemma3")
    assert not any("vision" in name for name in trained_names(bench))
    (tmp_path / "names").rmdir()
    named = trained_names(bench, lora_target_modules=["vision_tower"])
    assert named
    assert all("vision_tower" in name for name in named)


def test_an_unknown_name_lists_the_names_of_the_model(tmp_path: Path) -> None:
    from arkor.backend.engine.interface import RunError  # noqa: PLC0415 - as above
    from tests.families.check import Bench  # noqa: PLC0415 - as above

    with pytest.raises(
        RunError, match=r"'query' names no layer of this model\. Choose from .*experts\.gate_up_proj.*q_proj"
    ):
        Bench(tmp_path, "qwen3_moe").trainer(lora_target_modules=["query"])


def test_a_model_that_transformers_cannot_train_is_refused(tmp_path: Path) -> None:
    from arkor.backend.engine.interface import RunError  # noqa: PLC0415 - as above
    from tests.families.check import Bench  # noqa: PLC0415 - as above

    def fail(*_: Any) -> None:
        raise RuntimeError("no kernel for this device")

    trainer = Bench(tmp_path, "llama").trainer()
    trainer.model.get_base_model().model.norm.register_forward_hook(fail)
    with pytest.raises(
        RunError, match=r"A LlamaForCausalLM cannot be trained with the installed version .*: no kernel for this device"
    ):
        trainer.choose_layout()


def test_the_share_of_adapted_weights_is_logged(tmp_path: Path) -> None:
    from tests.families.check import Bench  # noqa: PLC0415 - as above

    recorder = Bench(tmp_path, "gpt_oss").run("run")
    (line,) = [message for message in recorder.messages if message.startswith("LoRA adapts")]
    assert "weights of experts are left out (lora.target_modules can add them)" in line
    (layout,) = [message for message in recorder.messages if message.startswith("The rows of a batch")]
    assert "joined to one sequence without padding" in layout

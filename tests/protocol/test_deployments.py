"""Validation of deployments and their keys."""

from __future__ import annotations

from typing import Any

import pytest

from arkor.errors import InvalidConfig
from arkor.protocol.deployments import AUTH_MODES, check_choice, check_retention, check_slug, clean_label
from arkor.protocol.model_target import ModelTarget

FINAL = {"kind": "adapter", "adapter": {"kind": "final", "jobId": "j"}}


@pytest.mark.parametrize("slug", ["ab", "a1", "my-bot", "0-0", "a" * 50])
def test_slugs(slug: str) -> None:
    check_slug(slug)


@pytest.mark.parametrize("slug", ["", "a", "a" * 51, "-ab", "ab-", "Ab", "a b", "a_b", "ab\n", "äb", "../x", None, 7])
def test_invalid_slugs(slug: Any) -> None:
    with pytest.raises(InvalidConfig, match="slug: must be 2 to 50"):
        check_slug(slug)


@pytest.mark.parametrize(
    "target",
    [
        FINAL,
        {"kind": "adapter", "adapter": {"kind": "checkpoint", "jobId": "j", "step": 0}, "of": "tomorrow"},
        {"kind": "base_model", "baseModel": "owner/name"},
    ],
)
def test_targets(target: Any) -> None:
    ModelTarget.parse(target)


def test_a_model_menu_is_kept_by_the_client_and_refused_by_our_backend() -> None:
    menu = {"kind": "model_menu", "models": ["a", "b"]}
    assert ModelTarget.parse(menu).to_wire() == menu
    with pytest.raises(InvalidConfig, match="target: must be"):
        ModelTarget.parse(menu, reject_unknown=True)


@pytest.mark.parametrize(
    ("target", "field"),
    [
        (None, "target"),
        ("j-1", "target"),
        ({"kind": "model"}, "target"),
        ({"kind": "base_model"}, "target.baseModel"),
        ({"kind": "base_model", "baseModel": " "}, "target.baseModel"),
        ({"kind": "adapter"}, "target.adapter"),
        ({"kind": "adapter", "adapter": {"kind": "best", "jobId": "j"}}, "target.adapter"),
        ({"kind": "adapter", "adapter": {"kind": "final", "jobId": 7}}, "target.adapter.jobId"),
        ({"kind": "adapter", "adapter": {"kind": "checkpoint", "jobId": "j"}}, "target.adapter.step"),
        ({"kind": "adapter", "adapter": {"kind": "checkpoint", "jobId": "j", "step": True}}, "target.adapter.step"),
    ],
)
def test_invalid_targets(target: Any, field: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        ModelTarget.parse(target)
    assert caught.value.field == field


@pytest.mark.parametrize("mode", ["none", "fixed_api_key"])
def test_auth_modes(mode: str) -> None:
    check_choice("auth_mode", mode, AUTH_MODES)
    with pytest.raises(InvalidConfig, match="'none' or 'fixed_api_key'"):
        check_choice("auth_mode", mode.upper(), AUTH_MODES)


@pytest.mark.parametrize(("mode", "days"), [(None, None), ("unlimited", None), ("days", 1), ("days", None), (None, 30)])
def test_retention(mode: Any, days: Any) -> None:
    check_retention(mode, days)


@pytest.mark.parametrize(
    ("mode", "days"), [("weeks", None), ("disabled", 3), ("days", 0), ("days", -1), ("days", True), ("days", 1.5)]
)
def test_invalid_retention(mode: Any, days: Any) -> None:
    with pytest.raises(InvalidConfig, match="run_retention_"):
        check_retention(mode, days)


def test_labels() -> None:
    assert clean_label("  ci of the shop ") == "ci of the shop"
    assert clean_label("é" * 80 + " ") == "é" * 80
    for label in ("", "   ", "x" * 81, None, 7):
        with pytest.raises(InvalidConfig, match="label"):
            clean_label(label)

"""Which model answers: a base model, or the adapter of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from arkor.errors import InvalidConfig
from arkor.formatting import quote
from arkor.protocol.codec import from_wire, to_wire
from arkor.protocol.validation import text


@frozen
class Adapter:
    """An adapter of the run `job_id`: `kind` is `"final"`, or `"checkpoint"` with its `step`."""

    kind: str
    job_id: str
    step: int | None = None

    @classmethod
    def of_run(cls, job_id: str, step: int | None = None) -> Adapter:
        """Return the adapter of the checkpoint at `step`, or the final adapter."""
        return cls("final", job_id) if step is None else cls("checkpoint", job_id, step)

    def check(self, name: str = "adapter") -> None:
        """Raise `InvalidConfig` for the first wrong field, prefixed with `name`."""
        if self.kind not in ("final", "checkpoint"):
            raise InvalidConfig(f"{name}.kind", f'must be "final" or "checkpoint", not {quote(self.kind)}')
        text(f"{name}.job_id", self.job_id)
        if self.kind == "final" and self.step is not None:
            raise InvalidConfig(f"{name}.step", "belongs to a checkpoint; the final adapter has none")
        if self.kind == "checkpoint" and not (type(self.step) is int and 0 <= self.step < 2**31):
            raise InvalidConfig(f"{name}.step", f"must be the step of a checkpoint, not {quote(self.step)}")


@frozen
class ModelTarget:
    """A base model by its name, or an `adapter`, which is applied to the base model of its run.

    `menu` is the JSON of a model menu, from which requests to the managed cloud choose a model.
    """

    base_model: str | None = None
    adapter: Adapter | None = None
    menu: Mapping[str, Any] | None = None

    @classmethod
    def of_run(cls, job_id: str, step: int | None = None) -> ModelTarget:
        """Return the target for the checkpoint at `step` of a run, or for its final adapter."""
        return cls(adapter=Adapter.of_run(job_id, step))

    @classmethod
    def parse(cls, target: Any, *, reject_unknown: bool = False) -> ModelTarget:
        """Parse the JSON `target` of a deployment. Raises `InvalidConfig` for `target.…`.

        `reject_unknown`: allow only what the backend of this version serves.
        """
        kind = target.get("kind") if isinstance(target, Mapping) else None
        if kind == "model_menu" and not reject_unknown:
            return cls(menu=dict(target))
        if kind not in ("base_model", "adapter"):
            shapes = '{"kind": "adapter", "adapter": …} or {"kind": "base_model", "baseModel": …}'
            raise InvalidConfig("target", f"must be {shapes}, not {quote(target)}")
        if reject_unknown:
            _reject_unknown("target", target, ("kind", "adapter" if kind == "adapter" else "baseModel"))
        if kind == "base_model":
            text("target.baseModel", target.get("baseModel"))
            return cls(base_model=target["baseModel"])
        adapter = target.get("adapter")
        if not isinstance(adapter, Mapping) or adapter.get("kind") not in ("final", "checkpoint"):
            shapes = '{"kind": "final", "jobId": …} or {"kind": "checkpoint", "jobId": …, "step": …}'
            raise InvalidConfig("target.adapter", f"must be {shapes}, not {quote(adapter)}")
        if reject_unknown:
            _reject_unknown("target.adapter", adapter, ("kind", "jobId", "step"))
        text("target.adapter.jobId", adapter.get("jobId"))
        parsed = from_wire(Adapter, adapter)
        parsed.check("target.adapter")
        return cls(adapter=parsed)

    @classmethod
    def parse_or_none(cls, target: Any) -> ModelTarget | None:
        try:
            return cls.parse(target)
        except InvalidConfig:
            return None

    def to_wire(self) -> dict[str, Any]:
        if self.menu is not None:
            return dict(self.menu)
        if self.adapter is None:
            return {"kind": "base_model", "baseModel": self.base_model}
        return {"kind": "adapter", "adapter": to_wire(self.adapter)}


def parse_step(step: str) -> int:
    """Parse the step of a checkpoint as written in `JOB@STEP`. Raises `InvalidConfig`."""
    if not (step.isascii() and step.isdigit() and len(step) < 10):
        raise InvalidConfig("step", f"must be the step of a checkpoint, a whole number, not {quote(step)}")
    return int(step)


def _reject_unknown(path: str, value: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in value:
        if key not in known:
            raise InvalidConfig(f"{path}.{key}"[:120], f"is not a known field; {' and '.join(known)} are")

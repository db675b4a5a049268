"""Where a run computes: the device, and the number format of the frozen weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import frozen


@frozen
class Device:
    """`kind` is "cuda", "mps" or "cpu"; `precision` is "bfloat16" or "float32"; `description` name it for a person."""

    kind: str
    precision: str
    description: str

    @property
    def dtype(self) -> Any:
        """The torch dtype of `precision`."""
        import torch  # noqa: PLC0415 - the plan of a run needs none

        return getattr(torch, self.precision)


def choose_device(precision: str | None = None) -> Device:
    """The fastest device that is here; `precision` overrides what it computes fastest in. Imports torch."""
    import torch  # noqa: PLC0415 - as above

    if torch.cuda.is_available():
        fastest = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        return _device("cuda", precision or fastest, torch.cuda.get_device_name(0))
    if torch.backends.mps.is_available():
        return _device("mps", precision or "float32", "the GPU of this Mac")
    threads = torch.get_num_threads()
    fastest = "bfloat16" if _cpu_supports_bf16() else "float32"
    return _device("cpu", precision or fastest, f"the CPU, {threads} {'thread' if threads == 1 else 'threads'}")


def _device(kind: str, precision: str, name: str) -> Device:
    return Device(kind, precision, f"{name}, {precision}")


def _cpu_supports_bf16() -> bool:
    """Whether the CPU has instructions for it; emulating them would be slower than fp32. Linux alone says so."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16"})

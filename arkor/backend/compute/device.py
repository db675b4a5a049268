"""The device to compute on, and the number format of the frozen weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import frozen


@frozen
class Device:
    """A device: `kind` is "cuda", "mps" or "cpu", `precision` "bfloat16" or "float32"."""

    kind: str
    precision: str
    description: str

    @property
    def dtype(self) -> Any:
        import torch  # noqa: PLC0415 - slow to import

        return getattr(torch, self.precision)


def choose_device(precision: str | None = None) -> Device:
    """Return the fastest device; `precision` overrides its fastest number format."""
    import torch  # noqa: PLC0415 - as above

    if torch.cuda.is_available():
        supports_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        kind, name = "cuda", torch.cuda.get_device_name(0)
    elif torch.backends.mps.is_available():
        kind, supports_bf16, name = "mps", False, "the GPU of this Mac"
    else:
        threads = torch.get_num_threads()
        kind, supports_bf16 = "cpu", _cpu_supports_bf16()
        name = f"the CPU, {threads} {'thread' if threads == 1 else 'threads'}"
    precision = precision or ("bfloat16" if supports_bf16 else "float32")
    return Device(kind, precision, f"{name}, {precision}")


def _cpu_supports_bf16() -> bool:
    """Whether the CPU has bf16 instructions; emulation is slower than fp32. Linux only."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16"})

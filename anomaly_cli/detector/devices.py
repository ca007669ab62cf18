"""Which processors a run uses: the CPU, one GPU, or all GPUs of this machine."""

from __future__ import annotations

import os
import platform

import torch

from anomaly_cli.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """Resolve `auto` to the first GPU where torch sees one, else the CPU.

    Raises:
        ConfigError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # fails on devices that hold shapes only
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        raise ConfigError(f"device {name} is not available here; use auto or cpu") from error
    return device


def choose_devices(name: str) -> list[torch.device]:
    """Resolve `auto` to every GPU that torch sees, or the CPU; any other name is one device.

    Raises:
        ConfigError: the device does not exist here.
    """
    first = choose_device(name)
    if name == "auto" and first.type == "cuda":
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [first]


FLOAT32_VARIABLE = "ANOMALY_FLOAT32"


def prefers_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; emulated, it is slower than float32.

    `ANOMALY_FLOAT32=1` in the environment asks for float32 all the same: scores are then equal to 1e-4 on all machines.
    """
    if os.environ.get(FLOAT32_VARIABLE):
        return False
    return torch.backends.mkldnn.is_available() and bool(torch.cpu._is_avx512_bf16_supported())


def processor() -> str:
    """Name the processor and precision, on which the last digits of a score depend."""
    precision = "bfloat16" if prefers_bfloat16() else "float32"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {precision}"

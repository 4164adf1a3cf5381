"""Which precision a device computes quickest in."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
_BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")  # the last as ARM names it


@functools.cache
def quickest_precision(device_type: str) -> Precision:
    """bf16 where the device has units for it. A CPU without them (AVX-512 BF16, AMX) computes it by way of float32, and
    takes several times as long as in float32."""
    if device_type != "cpu":
        return "bf16"
    capable: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if any(capable.get(unit) for unit in _BF16_UNITS) else "fp32"


def quickest(device: torch.device) -> AbstractContextManager[object]:
    """Within, what may be computed in bf16 is, where that is quicker."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=quickest_precision(device.type) == "bf16")

"""Whether 16 bits pay on this CPU: how fast, and how true, products of bf16 or fp16 are beside those of fp32.

A processor may have the instructions and torch no kernel for them; then they take a hundred times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from tithe.engine.measure.fp32_route import CPU, FASTER, precision, probe_fp32
from tithe.engine.measure.matmul import Product, clocked, operands, relative_error, single_threads

TIMED = Product(256, 768, 768)  # less than a pack's, as it may be slow
CHECKED = Product(33, 511, 97)
ROUNDS = 4
SLOW = 0.25  # seconds after which a product needs no second round
TRUE = {torch.bfloat16: 1e-2, torch.float16: 1e-3}  # relative error of a product that rounds as the dtype does


@dataclass(frozen=True)
class HalfSpeed:
    """What was found.

    Args:
        times: as fast as the faster route of fp32.
        relative_error: against float64.
        limit: above which products are not those of the dtype.
    """

    times: float
    relative_error: float
    limit: float

    @property
    def pays(self) -> bool:
        return self.times >= FASTER and self.relative_error <= self.limit

    def words(self, dtype: str) -> str:
        """Why it does not."""
        if self.relative_error > self.limit:
            return f"products in {dtype} are off by {self.relative_error:.1e} on this CPU, more than it rounds"
        return f"{dtype} multiplies {self.times:.2g} times as fast as fp32 on this CPU, and rounds"


@cache
def probe_half(dtype: torch.dtype) -> HalfSpeed:
    """Multiply in both, in turns, in a fraction of a second; the best rounds count."""
    route = probe_fp32()
    setting = "medium" if route.name == "onednn" else torch.get_float32_matmul_precision()
    with torch.inference_mode(), single_threads(CPU):
        pairs = {kind: operands(TIMED, kind, CPU) for kind in (torch.float32, dtype)}
        best = dict.fromkeys(pairs, float("inf"))
        for _ in range(ROUNDS):
            for kind, (left, right) in pairs.items():
                with precision(setting):
                    best[kind] = min(best[kind], clocked(left, right, 1))
            if best[dtype] > SLOW:
                break
        error = relative_error(CHECKED, dtype, CPU)
    return HalfSpeed(best[torch.float32] / best[dtype], error, TRUE[dtype])

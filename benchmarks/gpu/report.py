"""Results as they come: written after each contender, so that what is cut short loses nothing."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from job import Work
from shapes import flops

ALPACA = 52_002  # records, for which time is reckoned
# How far the mean likelihood of a pass may be from the loop's in float32: this, or twice what the loop in the same
# dtype is off, since both only round.
FLOOR = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}


def differences(found: Mapping[int, np.ndarray], exact: Mapping[int, np.ndarray]) -> dict[str, float]:
    """The largest, in nats, of a pass's mean and of a single token, over passes that both have read."""
    both = [i for i in found if i in exact and len(exact[i])]
    if not both:
        return {}
    if any(len(found[i]) != len(exact[i]) for i in both):
        return {"mean": float("inf"), "token": float("inf"), "passes": len(both)}
    return {
        "mean": max(float(abs(found[i].mean(dtype=np.float64) - exact[i].mean(dtype=np.float64))) for i in both),
        "token": max(float(np.abs(found[i] - exact[i]).max()) for i in both),
        "passes": len(both),
    }


def summary(entry: dict[str, Any], weights: dict[str, Any], whole: Work, records: int, peak: float) -> dict[str, Any]:
    """What follows from a contender's turns."""
    seconds, work = statistics.median(entry["turns"]), Work(**entry["work"])
    tflops = flops(weights, work) / seconds / 1e12
    return {
        "seconds": seconds,
        "tokens_per_second": work.tokens / seconds,
        "tflops": tflops,
        "utilisation": tflops / peak,
        "projected_seconds": seconds * whole.tokens / work.tokens * ALPACA / records,
    }


class Report:
    def __init__(
        self, out: Path, device: torch.device, dtype: torch.dtype, turns: int, records: int, work: Work,
        data: dict[str, Any],
    ) -> None:  # fmt: skip
        self.out, self.device, self.dtype, self.turns, self.records, self.work = (
            out,
            device,
            dtype,
            turns,
            records,
            work,
        )
        self.data = {**data, "finished": False, "models": []}

    @property
    def peak(self) -> float:
        return float(self.data["peak_tflops"])

    def squares(self, found: dict[str, float]) -> None:
        self.data |= {"square_tflops": found, "peak_tflops": max(found.values())}

    def add(self, weights: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
        entry = {"shape": weights, **about, "contenders": {}}
        self.data["models"].append(entry)
        return entry

    def late(self, entry: dict[str, Any], name: str) -> None:
        """Time is up for this one; turns that it had still count."""
        entry["contenders"].setdefault(name, {"not_run": "time was up"})

    def failed(self, entry: dict[str, Any], name: str) -> bool:
        return "failed" in entry["contenders"].get(name, {})

    def turn(self, entry: dict[str, Any], name: str, result: dict[str, Any], off: dict[str, float]) -> None:
        old = entry["contenders"].get(name, {})
        if "failed" in result:
            entry["contenders"][name] = {**old, **result}
        else:
            if result["passes"] < old.get("passes", 0):  # time was up in the middle: no turn like the others
                return self.late(entry, name)
            turns = [*(old.get("turns", []) if result["passes"] == old.get("passes") else []), result.pop("seconds")]
            kept = {"warm_seconds": old.get("warm_seconds", result["warm_seconds"])}
            entry["contenders"][name] = {**old, **result, **kept, "turns": turns, "difference": off}
        self.reckon(entry)
        self.write()
        shown = entry["contenders"][name]
        said = shown.get("failed") or f"{shown['tokens_per_second']:,.0f} tokens/s, {shown['utilisation']:.1%} of peak"
        print(f"{entry['shape']['name']}: {name}: {said}", file=sys.stderr)

    def reckon(self, entry: dict[str, Any]) -> None:
        """What follows from all turns so far; ratios are to the loop in the models' dtype."""
        run = {name: one for name, one in entry["contenders"].items() if "turns" in one}
        for one in run.values():
            one |= summary(one, entry["shape"], self.work, self.records, self.peak)
        loop = run.get("loop", {})
        allowed = max(FLOOR[self.dtype], 2 * loop.get("difference", {}).get("mean", 0.0))
        for one in run.values():
            one["times_the_loop"] = loop["projected_seconds"] / one["projected_seconds"] if loop else None
            states_its_own = "fp8" in one["notes"]  # how far it is from bf16, on some of the passes
            compared = one["difference"] and not states_its_own
            one["agrees"] = one["difference"]["mean"] <= allowed if compared else None

    def write(self) -> None:
        text = json.dumps(self.data, indent=2) + "\n"
        part = self.out.with_name(self.out.name + ".part")
        part.write_text(text, encoding="utf-8")
        part.replace(self.out)

    def finish(self, seconds: float) -> None:
        self.data |= {"finished": True, "seconds": seconds}
        self.write()

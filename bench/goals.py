"""The goals of docs/benchmark.md, and whether the results of a run meet them."""

from __future__ import annotations

from typing import NamedTuple

from fastopt.bench.report import Record, beyond_cache, case_of, faster_peers, relative_speed


class Goal(NamedTuple):
    """A goal, the measured value, and whether it meets the goal; `met` is None if it was not measured."""

    words: str
    found: str
    met: bool | None


def evaluate(records: list[Record]) -> list[Goal]:
    """Return the goals that these records measure."""
    timed = [r for r in records if r.get("versus") is not None and r["seconds"].get("fastopt")]
    large = [
        r for r in timed if r["part"] == "rules" and beyond_cache(r) and r["share"] and not case_of(r).program.noise
    ]
    on_a_device = any(r["case"]["backend"] == "cuda" for r in timed)
    found = _on_a_device(timed, large) if on_a_device else _on_a_cpu(timed, large) + _first_steps(records)
    return [goal for goal in found if goal.met is not None]


def _on_a_cpu(timed: list[Record], large: list[Record]) -> list[Goal]:
    goals = [
        _at_least(
            "float32, larger than the cache: every rule except gradient noise reaches 95 % of the memory ceiling",
            {case_of(r).rule: r["share"][1] for r in large}, 0.95, "{:.0%}",
        ),
        _no_faster_peer("float32, larger than the cache: no peer is faster by more than the noise", large),
        _at_least(
            "RMSprop with any settings is 4 × as fast as torch.optim",
            {
                case_of(r).rule: min(r["versus"][n][1] for n in ("torch for-loop", "torch foreach") if n in r["versus"])
                for r in large
                if case_of(r).rule.startswith("rmsprop") and "torch foreach" in r["versus"]
            },
            4.0,
            "{:.1f} ×",
        ),
    ]  # fmt: skip
    for size, target, words in (
        ("1000", 10.0, "a step of 1,000 parameters is 10 × as fast as torch fused"),
        ("100x10-1000", 50.0, "a step of 100 small tensors is 50 × as fast as torch fused"),
    ):
        found = {
            f"{r['part']}": r["versus"]["torch fused"][1]
            for r in timed
            if r["case"]["size"] == size and r["case"]["rule"] == "adam-decoupled" and "torch fused" in r["versus"]
        }
        goals.append(_at_least(words, found, target, "{:.1f} ×"))
    for name, target, words in (
        (
            "fastopt.torch flat",
            20.0,
            "fastopt.torch with flatten=True is 20 × as fast as torch fused, 1,000 small tensors",
        ),
        (
            "fastopt.torch table",
            8.0,
            "fastopt.torch with flatten=False is 8 × as fast as torch fused, 1,000 small tensors",
        ),
    ):
        many = [r for r in timed if r["part"] == "torch" and r["case"]["size"] == "1000x10-1000"]
        speeds = {r["case"]["rule"]: relative_speed(r, name, "torch fused") for r in many}
        goals.append(_at_least(words, {rule: x for rule, x in speeds.items() if x is not None}, target, "{:.1f} ×"))
    return goals + _storages(timed)


def _storages(timed: list[Record]) -> list[Goal]:
    goals = []
    adams = [r for r in timed if r["part"] == "storages" and r["case"]["rule"] == "adam-decoupled"]
    large = {r["case"]["storage"]: r for r in adams if beyond_cache(r)}
    for storage, most in (("bf16", 0.60), ("8bit", 0.80), ("split_8bit", 0.86), ("bf16_8bit", 0.82)):
        if storage in large and "f32" in large:
            ratio = large[storage]["seconds"]["fastopt"][1] / large["f32"]["seconds"]["fastopt"][1]
            words = f"larger than the cache: Adam in {storage} takes at most {most:.0%} of the time in float32"
            goals.append(Goal(words, f"{ratio:.0%}", ratio <= most))
    eight = {n: v[1] for r in timed if r["case"]["storage"] == "8bit" for n, v in r["versus"].items()}
    goals.append(_at_least("Adam with 8-bit state is 20 × as fast as a peer's", eight, 20.0, "{:.0f} ×"))
    half = {n: v[1] for r in adams if r["case"]["storage"] == "bf16" for n, v in r["versus"].items()}
    goals.append(_at_least("Adam in bf16 is 1.3 × as fast as torch fused in bfloat16", half, 1.3, "{:.2f} ×"))
    for r in timed:
        limit = {"bf16": 0.7, "8bit": 1.0, "split_8bit": 1.0, "bf16_8bit": 1.0}.get(r["case"]["storage"])
        if r["part"] == "storages" and limit and r["case"]["threads"] == 1 and not beyond_cache(r):
            ns = r["seconds"]["fastopt"][1] * 1e9 / case_of(r).elements
            words = (
                f"in cache, on one thread, call included: Adam in {r['case']['storage']} in {limit} ns per parameter"
            )
            goals.append(Goal(words, f"{ns:.2f} ns", ns <= limit))
    return goals


def _first_steps(records: list[Record]) -> list[Goal]:
    claims = [
        (r["name"], r["kind"], c, ok) for r in records if r["part"] == "first" for c, ok in r.get("claims", {}).items()
    ]
    return [Goal(f"{name}, {kind} cache: {claim}", "yes" if ok else "no", ok) for name, kind, claim, ok in claims]


def _on_a_device(timed: list[Record], large: list[Record]) -> list[Goal]:
    stored = {r["case"]["storage"]: r for r in timed if r["part"] == "storages" and beyond_cache(r)
              and r["case"]["rule"] == "adam-decoupled"}  # fmt: skip
    f32 = stored.get("f32", {"traffic": 0})
    return [
        _at_least(
            "float32, larger than the cache: every rule except gradient noise reaches 95 % of a device copy's speed",
            {case_of(r).rule: r["share"][1] for r in large}, 0.95, "{:.0%}",
        ),
        _no_faster_peer("float32, larger than the cache: no peer is faster by more than the noise", large),
        _at_least(
            "larger than the cache: Adam in a storage with fewer bytes is no slower than in float32",
            {name: f32["seconds"]["fastopt"][1] / r["seconds"]["fastopt"][1]
             for name, r in stored.items() if r["traffic"] < f32["traffic"]}, 1.0, "{:.2f} ×",
        ),
        _at_least(
            "a step with 8-bit state is no slower than a peer's",
            {f"{case_of(r).rule} {r['case']['storage']} {name}": v[1]
             for r in timed if "8bit" in r["case"]["storage"] for name, v in r["versus"].items()}, 1.0, "{:.2f} ×",
        ),
    ]  # fmt: skip


def _at_least(words: str, found: dict[str, float], target: float, style: str) -> Goal:
    """Return a goal that is met if every value is at least the target; otherwise the lower ones are listed."""
    if not found:
        return Goal(words, "not measured", None)
    ordered = sorted(found, key=lambda name: found[name])
    low = [name for name in ordered if found[name] < target]
    shown = (
        f"{style.format(found[ordered[0]])} to {style.format(found[ordered[-1]])}"
        if len(found) > 1
        else style.format(found[ordered[0]])
    )
    below = ", ".join(f"{name} {style.format(found[name])}" for name in low)
    return Goal(words, f"{shown}; below the goal: {below}" if low and len(found) > 1 else shown, not low)


def _no_faster_peer(words: str, records: list[Record]) -> Goal:
    if not records:
        return Goal(words, "not measured", None)
    ahead = [f"{case_of(r).rule}: {name} {1 / x:.2f} ×" for r in records for name, x in faster_peers(r).items()]
    return Goal(words, "; ".join(ahead) or f"none for {len(records)} rules", not ahead)

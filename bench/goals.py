"""The goals of docs/benchmark.md, and whether the results of a run meet them."""

from __future__ import annotations

from typing import NamedTuple

from fastopt.bench.report import Record, beyond_cache, case_of, lost_to, relative


class Goal(NamedTuple):
    """What was asked of a run: its words, what was found, whether that is enough; None where it was not measured."""

    words: str
    found: str
    met: bool | None


def evaluate(records: list[Record]) -> list[Goal]:
    """Hold a run to what is asked of it."""
    timed = [r for r in records if r.get("versus") is not None and r["seconds"].get("fastopt")]
    large = [
        r for r in timed if r["part"] == "rules" and beyond_cache(r) and r["share"] and not case_of(r).program.noise
    ]
    if any(r["case"]["backend"] == "cuda" for r in timed):
        return [goal for goal in _on_a_device(timed, large) if goal.met is not None]
    made = [
        _every(
            "in float32 beyond the cache every rule, gradient noise apart, reaches 95 % of the memory ceiling",
            {case_of(r).rule: r["share"][1] for r in large}, 0.95, "{:.0%}",
        ),
        _peers_ahead("in float32 beyond the cache no peer is ahead beyond noise", large),
        _every(
            "RMSprop in all forms is 4 × as fast as torch.optim",
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
        made.append(_every(words, found, target, "{:.1f} ×"))
    for way, target, words in (
        ("fastopt.torch flat", 20.0, "fastopt.torch in flat buffers is 20 × torch fused, 1,000 small tensors"),
        ("fastopt.torch table", 8.0, "fastopt.torch by a table is 8 × torch fused, 1,000 small tensors"),
    ):
        many = [r for r in timed if r["part"] == "torch" and r["case"]["size"] == "1000x10-1000"]
        found = {r["case"]["rule"]: relative(r, way, "torch fused") for r in many}
        made.append(_every(words, {rule: x for rule, x in found.items() if x is not None}, target, "{:.1f} ×"))
    adams = [r for r in timed if r["part"] == "storages" and r["case"]["rule"] == "adam-decoupled"]
    stored = {r["case"]["storage"]: r for r in adams if beyond_cache(r)}
    for storage, most in (("bf16", 0.70), ("8bit", 0.90), ("split_8bit", 0.90)):
        if storage in stored and "f32" in stored:
            ratio = stored[storage]["seconds"]["fastopt"][1] / stored["f32"]["seconds"]["fastopt"][1]
            words = f"Adam in {storage} takes at most {most:.0%} of float32's time, from memory"
            made.append(Goal(words, f"{ratio:.0%}", ratio <= most))
    eight = {n: v[1] for r in timed if r["case"]["storage"] == "8bit" for n, v in r["versus"].items()}
    made.append(_every("Adam with 8-bit state is 20 × as fast as the peers'", eight, 20.0, "{:.0f} ×"))
    half = {n: v[1] for r in adams if r["case"]["storage"] == "bf16" for n, v in r["versus"].items()}
    made.append(_every("Adam in bf16 is 1.4 × as fast as torch fused in bfloat16", half, 1.4, "{:.2f} ×"))
    for r in timed:
        limit = {"bf16": 0.7, "8bit": 1.3, "split_8bit": 1.3, "bf16_8bit": 1.3}.get(r["case"]["storage"])
        if r["part"] == "storages" and limit and r["case"]["threads"] == 1 and not beyond_cache(r):
            ns = r["seconds"]["fastopt"][1] * 1e9 / case_of(r).elements
            words = f"Adam in {r['case']['storage']} takes at most {limit} ns a parameter in cache, on one thread"
            made.append(Goal(words, f"{ns:.2f} ns", ns <= limit))
    claims = [
        (r["name"], r["kind"], c, ok) for r in records if r["part"] == "first" for c, ok in r.get("claims", {}).items()
    ]
    made += [Goal(f"{name}, {kind}: {claim}", "yes" if ok else "no", ok) for name, kind, claim, ok in claims]
    return [goal for goal in made if goal.met is not None]


def _on_a_device(timed: list[Record], large: list[Record]) -> list[Goal]:
    stored = {r["case"]["storage"]: r for r in timed if r["part"] == "storages" and beyond_cache(r)
              and r["case"]["rule"] == "adam-decoupled"}  # fmt: skip
    f32 = stored.get("f32", {"traffic": 0})
    return [
        _every(
            "in float32 beyond the cache every rule, gradient noise apart, reaches 95 % of a device copy",
            {case_of(r).rule: r["share"][1] for r in large}, 0.95, "{:.0%}",
        ),
        _peers_ahead("in float32 beyond the cache no peer is ahead beyond noise", large),
        _every(
            "Adam in fewer bytes takes no longer than in float32, from memory",
            {name: f32["seconds"]["fastopt"][1] / r["seconds"]["fastopt"][1]
             for name, r in stored.items() if r["traffic"] < f32["traffic"]}, 1.0, "{:.2f} ×",
        ),
        _every(
            "a step in 8 bits is no slower than a peer's",
            {f"{case_of(r).rule} {r['case']['storage']} {name}": v[1]
             for r in timed if "8bit" in r["case"]["storage"] for name, v in r["versus"].items()}, 1.0, "{:.2f} ×",
        ),
    ]  # fmt: skip


def _every(words: str, found: dict[str, float], target: float, how: str) -> Goal:
    """Hold every value to a target."""
    if not found:
        return Goal(words, "not measured", None)
    worst = sorted(found, key=lambda name: found[name])
    low = [name for name in worst if found[name] < target]
    shown = (
        f"{how.format(found[worst[0]])} to {how.format(found[worst[-1]])}"
        if len(found) > 1
        else how.format(found[worst[0]])
    )
    short = ", ".join(f"{name} {how.format(found[name])}" for name in low)
    return Goal(words, f"{shown}; short: {short}" if low and len(found) > 1 else shown, not low)


def _peers_ahead(words: str, records: list[Record]) -> Goal:
    if not records:
        return Goal(words, "not measured", None)
    ahead = [f"{case_of(r).rule}: {name} {1 / times:.2f} ×" for r in records for name, times in lost_to(r).items()]
    return Goal(words, "; ".join(ahead) or f"none in {len(records)} rules", not ahead)

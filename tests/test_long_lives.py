"""Many groups, many parameters, many steps, many optimizers: time grows linearly, and memory does not."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest

import fastopt
from fastopt.arrays.numpy import bfloat16


def resident() -> float:
    """Return the memory of this process in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")


def test_what_a_schedule_holds_is_freed_with_the_optimizer():
    class Trainer:
        pass

    trainer = Trainer()
    alive = weakref.ref(trainer)
    rule = fastopt.GradientNoise(fastopt.SGD(lr=lambda t, trainer=trainer: 0.1))
    opt = fastopt.Optimizer(rule, {"w": np.ones(3)})
    opt.step()
    fastopt.update(rule, 1, {"p": np.ones(3), "g": np.ones(3)})
    del opt, rule, trainer
    gc.collect()
    assert alive() is None


def test_a_rule_with_slots_and_a_schedule_steps():
    from dataclasses import dataclass
    from typing import Any

    @dataclass(frozen=True, slots=True)
    class Slotted:
        lr: Any = 0.5

        def scalars(self, t):
            return {"lr": self.lr}

        def update(self, p, g, *, lr):
            return p - lr * g

    p = np.ones(3)
    for t in (1, 2):
        fastopt.update(Slotted(lambda t: 0.25), t, {"p": p, "g": np.ones(3)})
    assert p.tolist() == [0.5] * 3


def test_two_schedules_of_one_type_at_one_address_are_two():
    """A rule that is gone leaves its id to another."""
    ends = []
    for k in range(200):
        p = np.ones(1)
        decay = 0.0 if k % 2 else 0.5
        fastopt.update(
            fastopt.Adam(lr=lambda t: 0.5, weight_decay=decay), 1, {b: p * (b == "p") for b in "gmv"} | {"p": p}
        )
        ends.append(p[0])
    assert len(set(ends)) == 2


def test_thousands_of_groups_are_made_in_linear_time():
    """Each is compared with no other: 16 million comparisons would take a minute."""
    n = 4000
    groups = {f"w{k}": {"lr": 1e-3 * (k + 1)} for k in range(n)}
    opt = fastopt.Optimizer(
        fastopt.SGD(), {f"w{k}": np.ones(2) for k in range(n)}, groups={**groups, "w1*": {"lr": 7.0}}
    )
    assert len(opt._groups) == 1 + sum(not name.startswith("w1") for name in groups)
    with pytest.raises(fastopt.SettingError, match="'w4000' fits no parameter"):
        fastopt.Optimizer(fastopt.SGD(), {"w0": np.ones(2)}, groups={"w*": {}, "w4000": {}})


def test_a_name_that_no_file_can_hold_is_refused():
    with pytest.raises(fastopt.LayoutError, match=r"(?s)UTF-8 cannot hold.*ud800"):
        fastopt.Optimizer(fastopt.SGD(), {"w\ud800": np.ones(3)})
    fastopt.Optimizer(fastopt.SGD(), {"µ€😀": np.ones(3)})


@linux
def test_optimizers_and_steps_leave_no_memory_behind():
    def use(count: int) -> None:
        for k in range(count):
            opt = fastopt.Optimizer(fastopt.Adam(lr=lambda t, k=k: 1e-3 * k), {"w": np.ones(1000, np.float32)})
            for _ in range(3):
                opt.step()
            opt.load_state_dict(opt.state_dict())

    use(300)
    before = resident()
    use(1000)
    assert resident() - before < 4, "MB; each optimizer has 16 kB"


@pytest.mark.slow
@linux
def test_a_million_steps_and_ten_thousand_optimizers_leave_no_memory_behind():
    opt = fastopt.Optimizer(fastopt.Adam(), {"w": np.ones(100, np.float32)})
    for _ in range(10_000):
        opt.step()
    before = resident()
    for _ in range(1_000_000):
        opt.step()
    for _ in range(10_000):
        fastopt.Optimizer(fastopt.Adam(), {"w": np.ones(1000, np.float32)}).step()
    assert resident() - before < 8


@linux
def test_without_threads_or_memory_a_step_is_whole_or_an_error_says_so():
    code = """
import resource, threading, numpy as np, fastopt
n = 3_000_000
p, g = np.zeros(n, np.float32), np.ones(n, np.float32)
fastopt.update(fastopt.SGD(lr=1.0), 1, {"p": p[:10], "g": g[:10]})
p[:] = 0
start = threading.Thread.start
def refused(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refused
fastopt.set_threads(8)
fastopt.update(fastopt.SGD(lr=1.0), 1, {"p": p, "g": g})
threading.Thread.start = start
assert np.all(p == -1)
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
opt = fastopt.Optimizer(fastopt.SGD(lr=1.0), {"w": np.zeros(1000, np.float32)})
before = opt.state_dict()
try:
    fastopt.Optimizer(fastopt.Adam(), {"w": np.broadcast_to(np.float32(1), 1 << 30)})
except MemoryError as error:
    print("MemoryError")
opt.step()
print(opt.t)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == ["MemoryError", "1"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["f32", "bf16"])
def test_more_elements_than_32_bits_count(storage):
    """With 2³¹ and more, of which the last and some around the border are looked at; some 9 and 17 GB."""
    n, border = 2**31 + 1003, 2**31
    kind = np.dtype(np.float32) if storage == "f32" else bfloat16()
    p, g = np.zeros(n, kind), np.zeros(n, kind)
    for at in (slice(0, 300), slice(border - 300, border + 300), slice(n - 300, n)):
        p[at], g[at] = 1.0, 0.5
    rule = fastopt.SGD(lr=0.5)
    fastopt.update(rule, 1, {"p": p, "g": g}, storage=None if storage == "f32" else {"p": "bf16", "g": "bf16"})
    for at in (slice(0, 300), slice(border - 300, border + 300), slice(n - 300, n)):
        assert np.all(p[at] == 0.75)
    assert np.count_nonzero(p.view(np.uint32 if storage == "f32" else np.uint16)) == 1200

"""Schedules: learning-rate decay and warm-up as pure functions of the step t.

A schedule is a frozen dataclass, called with t and returning a float: it is hashable, can be pickled, has no state
and returns the same value for the same t. Any number of a rule may be one: `Adam(lr=Cosine(1e-3, steps=1000))`. They
compose: `a * b`, `a + b`, `0.5 * a`, `Join({0: a, 500: b})`, `a.delayed(100)`. For one of your own, derive a frozen
dataclass from `Schedule` and define `at(t)`; a plain function of t serves too where nothing is composed.

t is the number of the step being taken, 1, 2, …, and the formulas are evaluated at t as they stand; t = 0 is the
value before the first step. Frameworks count from 0: at our step t their count is t − 1, and so their schedulers
evaluate our formula at t − 1, which is `.delayed(1)`:

    torch.optim.lr_scheduler                          here
    ExponentialLR(gamma=γ)                            Exponential(lr, γ).delayed(1)
    StepLR(step_size=n, gamma=γ)                      Step(lr, every=n, factor=γ).delayed(1)
    MultiStepLR(milestones=[n], gamma=γ)              Piecewise({0: lr, n: lr·γ}).delayed(1)
    LinearLR(start_factor=f, total_iters=n)           Polynomial(f·lr, n, end=lr).delayed(1)
    PolynomialLR(total_iters=n, power=k)              Polynomial(lr, n, power=k).delayed(1)
    CosineAnnealingLR(T_max=n, eta_min=ε)             Cosine(lr, n, end=ε).delayed(1); after n theirs rises again
    OneCycleLR(max_lr, total_steps=n)                 OneCycle(max_lr, n), not delayed
    SequentialLR([a, b], milestones=[n])              Join({0: a.delayed(1), n: b.delayed(1)})

Values are in the units of the setting they stand for and are not clipped: the rule checks them at each step.
A setting out of the range that its schedule states is a SettingError when the schedule is made.
"""

from fastopt.schedules.decay import Cosine, Exponential, InverseTime, Piecewise, Polynomial, Step
from fastopt.schedules.schedule import Constant, Delayed, Join, Product, Schedule, Sum
from fastopt.schedules.warmup import OneCycle, Warmup, WarmupStableDecay

__all__ = [
    "Constant",
    "Cosine",
    "Delayed",
    "Exponential",
    "InverseTime",
    "Join",
    "OneCycle",
    "Piecewise",
    "Polynomial",
    "Product",
    "Schedule",
    "Step",
    "Sum",
    "Warmup",
    "WarmupStableDecay",
]

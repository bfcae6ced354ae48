"""The rules of CASES in other libraries: which optimizer, with which settings, computes the same.

The tests take 100 steps with every row and compare them with fastopt's; the benchmark times rows that the peers in
peers/ support. The libraries are imported only when a row's `make` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

STEPS = 100
"""The number of steps that the tests compare; the schedules below have this length."""


class Row(NamedTuple):
    """An optimizer of another library: the row of CASES it equals, how to make it, and its names for the state."""

    case: str
    make: Callable[..., Any]
    state: Mapping[str, str]
    schedule: Callable[..., Any]
    library: str
    name: str
    optimizer: str = ""  # the class in torch.optim


def _torch(
    case: str,
    optimizer: str,
    state: Mapping[str, str],
    schedule: tuple[str, dict] | None = None,
    library: str = "torch",
    **settings: Any,
) -> Row:
    """Make a row of torch.optim: the class and the learning-rate scheduler, if any, by name, each with its settings.

    Of another library for torch, the class is in its main module.
    """

    def scheduler(torch, made):
        return getattr(torch.optim.lr_scheduler, schedule[0])(made, **schedule[1]) if schedule else None

    module = "torch.optim" if library == "torch" else library
    name = f"{library} {case}" + (f" {schedule[0]}" if schedule else "")
    return Row(
        case,
        lambda torch, p: getattr(import_module(module), optimizer)([p], **settings),
        state,
        scheduler,
        library,
        name,
        optimizer,
    )


def _optax(case: str, make: Callable[[Any, Any], Any], state: Mapping[str, str], lr: Any) -> Row:
    """Make a row of optax: `make(optax, learning_rate)`, where the rate is `lr` or, for a schedule, `lr(optax)`."""
    name = f"optax {case}" + (" schedule" if callable(lr) else "")
    return Row(case, make, state, lr if callable(lr) else lambda _: lambda _: lr, "optax", name)


_MV, _MVX = {"m": "exp_avg", "v": "exp_avg_sq"}, {"m": "exp_avg", "v": "exp_avg_sq", "vmax": "max_exp_avg_sq"}
_M, _V, _VA = {"m": "momentum_buffer"}, {"v": "square_avg"}, {"v": "square_avg", "a": "grad_avg"}
_SUM, _VU, _MU = {"v": "sum"}, {"v": "square_avg", "u": "acc_delta"}, {"m": "exp_avg", "u": "exp_inf"}

TORCH = [
    _torch("sgd", "SGD", {}, lr=0.1),
    _torch("sgd", "SGD", {}, ("CosineAnnealingLR", {"T_max": STEPS}), lr=0.1),
    _torch("sgd-weight-decay", "SGD", {}, lr=0.1, weight_decay=0.02),
    _torch("momentum-heavy-ball", "SGD", _M, lr=0.01, momentum=0.9),
    _torch("momentum-heavy-ball-weight-decay", "SGD", _M, lr=0.01, momentum=0.9, weight_decay=0.02),
    _torch("momentum-heavy-ball-nesterov", "SGD", _M, lr=0.01, momentum=0.9, nesterov=True),
    _torch("momentum-heavy-ball-dampening", "SGD", _M, lr=0.01, momentum=0.9, dampening=0.3),
    _torch(
        "momentum-heavy-ball-dampening",
        "SGD",
        _M,
        ("StepLR", {"step_size": 20, "gamma": 0.5}),
        lr=0.01,
        momentum=0.9,
        dampening=0.3,
    ),
    _torch("rmsprop", "RMSprop", _V, eps=1e-3),
    _torch("rmsprop-centered", "RMSprop", _VA, eps=1e-3, centered=True),
    _torch("rmsprop-momentum", "RMSprop", _V | _M, eps=1e-3, momentum=0.8),
    _torch("rmsprop-centered-momentum", "RMSprop", _VA | _M, eps=1e-3, centered=True, momentum=0.8),
    _torch(
        "rmsprop-centered-momentum",
        "RMSprop",
        _VA | _M,
        ("ExponentialLR", {"gamma": 0.97}),
        eps=1e-3,
        centered=True,
        momentum=0.8,
    ),
    _torch("rmsprop-weight-decay", "RMSprop", _V, eps=1e-3, weight_decay=0.02),
    _torch(
        "rmsprop-centered-momentum-weight-decay",
        "RMSprop",
        _VA | _M,
        eps=1e-3,
        centered=True,
        momentum=0.8,
        weight_decay=0.02,
    ),
    _torch("rmsprop-no-eps", "RMSprop", _V, eps=0.0),
    _torch("adam", "Adam", _MV, lr=0.01, eps=1e-3),
    _torch("adam-decoupled", "AdamW", _MV, lr=0.01, eps=1e-3, weight_decay=0.5),
    _torch("adam-decoupled", "AdamW", _MV, ("LinearLR", {"total_iters": 20}), lr=0.01, eps=1e-3, weight_decay=0.5),
    _torch("adam-l2", "Adam", _MV, lr=0.01, eps=1e-3, weight_decay=0.02),
    _torch("adam-amsgrad", "AdamW", _MVX, lr=0.01, eps=1e-3, weight_decay=0.0, amsgrad=True),
    _torch("adam-amsgrad-decoupled", "AdamW", _MVX, lr=0.01, eps=1e-3, weight_decay=0.5, amsgrad=True),
    _torch("adam-amsgrad-l2", "Adam", _MVX, lr=0.01, eps=1e-3, weight_decay=0.02, amsgrad=True),
    _torch("adam-no-eps", "Adam", _MV, lr=0.01, eps=0.0),
    _torch("adam-no-momentum", "Adam", _MV, lr=0.01, betas=(0.0, 0.99), eps=1e-3),
    _torch("adagrad", "Adagrad", _SUM, lr=0.1, eps=1e-3),
    _torch("adagrad-lr-decay", "Adagrad", _SUM, lr=0.1, eps=1e-3, lr_decay=1e-3),
    _torch("adagrad-lr-decay", "Adagrad", _SUM, ("ExponentialLR", {"gamma": 0.99}), lr=0.1, eps=1e-3, lr_decay=1e-3),
    _torch("adagrad-initial", "Adagrad", _SUM, lr=0.1, eps=1e-3, initial_accumulator_value=0.1),
    _torch("adagrad-weight-decay", "Adagrad", _SUM, lr=0.1, eps=1e-3, weight_decay=0.02),
    _torch("adagrad-no-eps", "Adagrad", _SUM, lr=0.1, eps=0.0),
    _torch("adadelta", "Adadelta", _VU, lr=0.5, eps=1e-3),
    _torch("adadelta-weight-decay", "Adadelta", _VU, lr=0.5, eps=1e-3, weight_decay=0.02),
    _torch("adamax", "Adamax", _MU, lr=0.01, eps=1e-3),
    _torch("adamax-weight-decay", "Adamax", _MU, lr=0.01, eps=1e-3, weight_decay=0.02),
    _torch("adamax-no-eps", "Adamax", _MU, lr=0.01, eps=0.0),
    _torch("nadam", "NAdam", _MV, lr=0.01, eps=1e-3),
    _torch("nadam", "NAdam", _MV, ("PolynomialLR", {"total_iters": STEPS, "power": 2.0}), lr=0.01, eps=1e-3),
    _torch("nadam-l2", "NAdam", _MV, lr=0.01, eps=1e-3, weight_decay=0.02),
    _torch("nadam-decoupled", "NAdam", _MV, lr=0.01, eps=1e-3, weight_decay=0.5, decoupled_weight_decay=True),
    _torch("nadam-constant-momentum", "NAdam", _MV, lr=0.01, eps=1e-3, momentum_decay=1e6),
    _torch("radam", "RAdam", _MV, lr=0.01, eps=1e-3),
    _torch("radam-l2", "RAdam", _MV, lr=0.01, eps=1e-3, weight_decay=0.02),
    _torch("radam-decoupled", "RAdam", _MV, lr=0.01, eps=1e-3, weight_decay=0.5, decoupled_weight_decay=True),
    _torch("radam-no-eps", "RAdam", _MV, lr=0.01, eps=0.0),
    _torch(
        "rprop",
        "Rprop",
        {"size": "step_size", "previous": "prev"},
        ("ExponentialLR", {"gamma": 0.97}),
        etas=(0.6, 1.1),
        step_sizes=(1e-4, 0.03),
    ),
    _torch("asgd", "ASGD", {"ax": "ax"}, lr=0.1, lambd=0.01, t0=20.0, weight_decay=0.02),
]

_FALLING = ("ExponentialLR", {"gamma": 0.97})
_ADAM = {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.5}

# Rules of today that torch.optim does not have, in libraries for torch. schedulefree weighs a step by the largest
# learning rate so far, which for a rate that falls after the warm-up is that of its end.
FOR_TORCH = [
    _torch("adabelief", "AdaBelief", {"m": "exp_avg", "s": "exp_avg_var"}, _FALLING, "pytorch_optimizer", **_ADAM),
    _torch("yogi", "Yogi", _MV, _FALLING, "pytorch_optimizer", **_ADAM),
    _torch(
        "ademamix",
        "AdEMAMix",
        {**_MV, "slow": "exp_avg_slow"},
        _FALLING,
        "pytorch_optimizer",
        betas=(0.9, 0.999, 0.99),
        alpha=2.0,
        t_alpha_beta3=40,
        weight_decouple=True,
        **_ADAM,
    ),
    _torch(
        "adan",
        "Adan",
        {"m": "exp_avg", "v": "exp_avg_diff", "n": "exp_avg_sq"},
        _FALLING,
        "pytorch_optimizer",
        **_ADAM,
    ),
    _torch(
        "schedulefreesgd",
        "SGDScheduleFree",
        {"z": "z"},
        ("StepLR", {"step_size": 20, "gamma": 0.5}),
        "schedulefree",
        lr=0.1,
        weight_decay=0.02,
        warmup_steps=10,
    ),
    _torch(
        "schedulefreeadamw",
        "AdamWScheduleFree",
        {"z": "z", "v": "exp_avg_sq"},
        ("StepLR", {"step_size": 20, "gamma": 0.5}),
        "schedulefree",
        lr=0.02,
        eps=1e-3,
        weight_decay=0.5,
        warmup_steps=10,
        r=1.0,
    ),
    _torch("signum", "Tiger", {"m": "exp_avg"}, _FALLING, "pytorch_optimizer", lr=0.01, beta=0.965, weight_decay=0.5),
]


def _l2(optax: Any, rule: Any) -> Any:
    """Add L2 weight decay to a rule: of the rules here, only Adadelta has such a setting in optax."""
    return optax.chain(optax.add_decayed_weights(0.02), rule)


def _average(optax: Any, lr: Any, *, debias: bool = False) -> Any:
    return optax.chain(optax.ema(0.9, debias=debias), optax.scale_by_learning_rate(lr))


def _decoupled(optax: Any, lr: Any, rule: Any, decay: Any = 0.5) -> Any:
    """Add decoupled weight decay and the learning rate to what scales gradients."""
    return optax.chain(rule, optax.add_decayed_weights(decay), optax.scale_by_learning_rate(lr))


def _rmsprop(**settings: Any) -> Callable[[Any, Any], Any]:
    """Make RMSprop with fastopt's defaults. optax's momentum buffer sums −lr·s, not s, so it is not compared with m."""
    return lambda o, lr: o.rmsprop(lr, **{"decay": 0.99, "eps": 1e-3, "eps_in_sqrt": False, **settings})


_EMA, _TRACE, _NU, _SQUARES = {"m": "ema"}, {"m": "trace"}, {"v": "nu"}, {"v": "sum_of_squares"}
_MU_NU, _CENTERED = {"m": "mu", "v": "nu"}, {"a": "mu", "v": "nu"}
_INFINITY, _DELTA = {"m": "mu", "u": "nu"}, {"v": "e_g", "u": "e_x"}

OPTAX = [
    _optax("sgd", lambda o, lr: o.sgd(lr), {}, 0.1),
    _optax("sgd", lambda o, lr: o.sgd(lr), {}, lambda o: o.cosine_decay_schedule(0.1, STEPS)),
    _optax("sgd-weight-decay", lambda o, lr: _l2(o, o.sgd(lr)), {}, 0.1),
    _optax("momentum", _average, _EMA, 0.1),
    _optax("momentum", _average, _EMA, lambda o: o.exponential_decay(0.1, 30, 0.5)),
    _optax("momentum-bias-correction", lambda o, lr: _average(o, lr, debias=True), _EMA, 0.1),
    _optax("momentum-weight-decay", lambda o, lr: _l2(o, _average(o, lr)), _EMA, 0.1),
    _optax("momentum-heavy-ball", lambda o, lr: o.sgd(lr, momentum=0.9), _TRACE, 0.01),
    _optax("momentum-heavy-ball-weight-decay", lambda o, lr: _l2(o, o.sgd(lr, momentum=0.9)), _TRACE, 0.01),
    _optax("momentum-heavy-ball-nesterov", lambda o, lr: o.sgd(lr, momentum=0.9, nesterov=True), _TRACE, 0.01),
    _optax("rmsprop", _rmsprop(), _NU, 0.01),
    _optax("rmsprop-centered", _rmsprop(centered=True), _CENTERED, 0.01),
    _optax("rmsprop-momentum", _rmsprop(momentum=0.8), _NU, 0.01),
    _optax("rmsprop-centered-momentum", _rmsprop(centered=True, momentum=0.8), _CENTERED, 0.01),
    _optax("rmsprop-inside", _rmsprop(eps_in_sqrt=True), _NU, 0.01),
    _optax("rmsprop-inside", _rmsprop(eps_in_sqrt=True), _NU, lambda o: o.linear_schedule(0.01, 0.001, STEPS)),
    _optax("rmsprop-centered-inside", _rmsprop(centered=True, eps_in_sqrt=True), _CENTERED, 0.01),
    _optax("rmsprop-momentum-inside", _rmsprop(momentum=0.8, eps_in_sqrt=True), _NU, 0.01),
    _optax(
        "rmsprop-centered-momentum-inside", _rmsprop(centered=True, momentum=0.8, eps_in_sqrt=True), _CENTERED, 0.01
    ),
    _optax("rmsprop-weight-decay", lambda o, lr: _l2(o, _rmsprop()(o, lr)), _NU, 0.01),
    _optax("rmsprop-no-eps", _rmsprop(eps=0.0), _NU, 0.01),
    _optax("adam", lambda o, lr: o.adam(lr, eps=1e-3), _MU_NU, 0.01),
    _optax("adam-decoupled", lambda o, lr: o.adamw(lr, eps=1e-3, weight_decay=0.5), _MU_NU, 0.01),
    _optax(
        "adam-decoupled",
        lambda o, lr: o.adamw(lr, eps=1e-3, weight_decay=0.5),
        _MU_NU,
        lambda o: o.warmup_cosine_decay_schedule(0.0, 0.02, 10, STEPS),
    ),
    _optax("adam-l2", lambda o, lr: _l2(o, o.adam(lr, eps=1e-3)), _MU_NU, 0.01),
    _optax("adam-no-eps", lambda o, lr: o.adam(lr, eps=0.0), _MU_NU, 0.01),
    _optax("adam-no-momentum", lambda o, lr: o.adam(lr, b1=0.0, b2=0.99, eps=1e-3), _MU_NU, 0.01),
    _optax("adagrad-no-eps", lambda o, lr: o.adagrad(lr, initial_accumulator_value=0.0, eps=0.0), _SQUARES, 0.1),
    _optax("adadelta", lambda o, lr: o.adadelta(lr, eps=1e-3), _DELTA, 0.5),
    _optax("adadelta-weight-decay", lambda o, lr: o.adadelta(lr, eps=1e-3, weight_decay=0.02), _DELTA, 0.5),
    _optax("adamax", lambda o, lr: o.adamax(lr, eps=1e-3), _INFINITY, 0.01),
    _optax("adamax-weight-decay", lambda o, lr: _l2(o, o.adamax(lr, eps=1e-3)), _INFINITY, 0.01),
    _optax("adamax-no-eps", lambda o, lr: o.adamax(lr, eps=0.0), _INFINITY, 0.01),
    _optax("nadam-constant-momentum", lambda o, lr: o.nadam(lr, eps=1e-3), _MU_NU, 0.01),
    _optax("radam-no-eps", lambda o, lr: o.radam(lr, eps=0.0), _MU_NU, 0.01),
    _optax("lion", lambda o, lr: o.lion(lr, weight_decay=0.0), {"m": "mu"}, 0.01),
    _optax("lion-weight-decay", lambda o, lr: o.lion(lr, weight_decay=0.5), {"m": "mu"}, 0.01),
    _optax(
        "lion-weight-decay",
        lambda o, lr: o.lion(lr, weight_decay=0.5),
        {"m": "mu"},
        lambda o: o.polynomial_schedule(0.01, 0.001, 2, STEPS),
    ),
    _optax(
        "adabelief",
        lambda o, lr: _decoupled(o, lr, o.scale_by_belief(eps=1e-3, eps_root=1e-3)),
        {"m": "mu", "s": "nu"},
        lambda o: o.exponential_decay(0.01, 30, 0.5),
    ),
    _optax("yogi", lambda o, lr: _decoupled(o, lr, o.scale_by_yogi(eps=1e-3)), _MU_NU, 0.01),
    _optax(
        "adopt",
        # In float64, where optax computes a float32 from its int32 of a count; no decay in the first step.
        lambda o, lr: _decoupled(
            o,
            lr,
            o.contrib.scale_by_adopt(0.9, 0.99, 0.5, clip_value_fn=lambda n: n.astype(float) ** 0.25),
            lambda n: 0.5 * (n > 0),
        ),
        _MU_NU,
        lambda o: o.exponential_decay(0.01, 30, 0.5),
    ),
    _optax(
        "signum",
        lambda o, lr: _decoupled(o, lr, o.chain(o.ema(0.965, debias=False), o.scale_by_sign())),
        {"m": "ema"},
        0.01,
    ),
]

ROWS = {row.name: row for row in TORCH + FOR_TORCH + OPTAX}

"""CASES, the table that benchmarks and tests iterate over: each rule in every setting that changes what it computes.

A new rule, or a new setting of one, gets its rows here and is then timed and tested by everything: all backends, all
storages, all sizes. The numbers are chosen to show: weight decay and ε are large enough that leaving one out, or
moving it elsewhere in the formula, changes results by far more than rounding does.
"""

from __future__ import annotations

from typing import Any

from fastopt.kernels.rules import (
    ADOPT,
    ASGD,
    EMA,
    LAMB,
    LARS,
    MADGRAD,
    MARS,
    SGD,
    AdaBelief,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    Adan,
    AdEMAMix,
    Cautious,
    ClipByValue,
    GPAAdamW,
    GradientNoise,
    Grokfast,
    LaProp,
    Lion,
    Lookahead,
    Momentum,
    NAdam,
    NovoGrad,
    Prodigy,
    QHAdam,
    RAdam,
    RMSprop,
    Rprop,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    Signum,
    SophiaG,
    StableAdamW,
    Yogi,
)


def halving(t: int) -> float:
    """Return a learning rate that halves every ten steps, the plainest schedule there is: a function of t."""
    return 0.1 * 0.5 ** (t // 10)


def warming(t: int) -> float:
    """Return a β₂ that grows with t: a schedule need not be one of the learning rate."""
    return 1 - 1 / (t + 10)


CASES: dict[str, Any] = {
    "sgd": SGD(lr=0.1),
    "sgd-weight-decay": SGD(lr=0.1, weight_decay=0.02),
    "sgd-scheduled": SGD(lr=halving),
    "momentum": Momentum(lr=0.1),
    "momentum-bias-correction": Momentum(lr=0.1, bias_correction=True),
    "momentum-nesterov": Momentum(lr=0.1, nesterov=True),
    "momentum-nesterov-bias-correction": Momentum(lr=0.1, nesterov=True, bias_correction=True),
    "momentum-weight-decay": Momentum(lr=0.1, weight_decay=0.02),
    "momentum-nesterov-weight-decay": Momentum(lr=0.1, nesterov=True, weight_decay=0.02),
    "momentum-heavy-ball": Momentum(lr=0.01, dampening=0.0),
    "momentum-heavy-ball-weight-decay": Momentum(lr=0.01, dampening=0.0, weight_decay=0.02),
    "momentum-heavy-ball-nesterov": Momentum(lr=0.01, dampening=0.0, nesterov=True),
    "momentum-heavy-ball-dampening": Momentum(lr=0.01, dampening=0.3),
    "rmsprop": RMSprop(eps=1e-3),
    "rmsprop-centered": RMSprop(eps=1e-3, centered=True),
    "rmsprop-momentum": RMSprop(eps=1e-3, momentum=0.8),
    "rmsprop-centered-momentum": RMSprop(eps=1e-3, centered=True, momentum=0.8),
    "rmsprop-inside": RMSprop(eps=1e-3, eps_inside_sqrt=True),
    "rmsprop-centered-inside": RMSprop(eps=1e-3, centered=True, eps_inside_sqrt=True),
    "rmsprop-momentum-inside": RMSprop(eps=1e-3, momentum=0.8, eps_inside_sqrt=True),
    "rmsprop-centered-momentum-inside": RMSprop(eps=1e-3, centered=True, momentum=0.8, eps_inside_sqrt=True),
    "rmsprop-weight-decay": RMSprop(eps=1e-3, weight_decay=0.02),
    "rmsprop-centered-momentum-weight-decay": RMSprop(eps=1e-3, centered=True, momentum=0.8, weight_decay=0.02),
    "rmsprop-no-eps": RMSprop(eps=0.0),
    "adam": Adam(lr=0.01, eps=1e-3),
    "adam-decoupled": Adam(lr=0.01, eps=1e-3, weight_decay=0.5),
    "adam-l2": Adam(lr=0.01, eps=1e-3, weight_decay=0.02, decoupled=False),
    "adam-amsgrad": Adam(lr=0.01, eps=1e-3, amsgrad=True),
    "adam-amsgrad-decoupled": Adam(lr=0.01, eps=1e-3, weight_decay=0.5, amsgrad=True),
    "adam-amsgrad-l2": Adam(lr=0.01, eps=1e-3, weight_decay=0.02, decoupled=False, amsgrad=True),
    "adam-no-eps": Adam(lr=0.01, eps=0.0),
    "adam-no-momentum": Adam(lr=0.01, betas=(0.0, 0.99), eps=1e-3),
    "adam-scheduled": Adam(lr=halving, betas=(0.9, warming), eps=1e-3),
    "adagrad": Adagrad(lr=0.1, eps=1e-3),
    "adagrad-lr-decay": Adagrad(lr=0.1, eps=1e-3, lr_decay=1e-3),
    "adagrad-initial": Adagrad(lr=0.1, eps=1e-3, initial_accumulator_value=0.1),
    "adagrad-weight-decay": Adagrad(lr=0.1, eps=1e-3, weight_decay=0.02),
    "adagrad-no-eps": Adagrad(lr=0.1, eps=0.0),
    "adadelta": Adadelta(lr=0.5, eps=1e-3),
    "adadelta-weight-decay": Adadelta(lr=0.5, eps=1e-3, weight_decay=0.02),
    "adamax": Adamax(lr=0.01, eps=1e-3),
    "adamax-weight-decay": Adamax(lr=0.01, eps=1e-3, weight_decay=0.02),
    "adamax-no-eps": Adamax(lr=0.01, eps=0.0),
    "nadam": NAdam(lr=0.01, eps=1e-3),
    "nadam-l2": NAdam(lr=0.01, eps=1e-3, weight_decay=0.02),
    "nadam-decoupled": NAdam(lr=0.01, eps=1e-3, weight_decay=0.5, decoupled_weight_decay=True),
    "nadam-constant-momentum": NAdam(lr=0.01, eps=1e-3, momentum_decay=1e6),
    "radam": RAdam(lr=0.01, eps=1e-3),
    "radam-l2": RAdam(lr=0.01, eps=1e-3, weight_decay=0.02),
    "radam-decoupled": RAdam(lr=0.01, eps=1e-3, weight_decay=0.5, decoupled_weight_decay=True),
    "radam-no-eps": RAdam(lr=0.01, eps=0.0),
    "lion": Lion(lr=0.01),
    "lion-weight-decay": Lion(lr=0.01, weight_decay=0.5),
    "lamb": LAMB(lr=0.01, eps=1e-3, weight_decay=0.02),
    "lars": LARS(lr=0.5, trust_coefficient=0.02, weight_decay=0.02),
    "lars-nesterov": LARS(lr=0.5, trust_coefficient=0.02, nesterov=True, weight_decay=0.02),
    "stableadamw": StableAdamW(lr=0.01, eps=1e-3, weight_decay=0.5),
    "mars": MARS(lr=0.01, eps=1e-3, gamma=0.1, weight_decay=0.5),
    "novograd": NovoGrad(lr=0.01, eps=1e-3, weight_decay=0.02),
    "prodigy": Prodigy(lr=0.5, eps=1e-3, d0=1e-3, weight_decay=0.02),
    "adabelief": AdaBelief(lr=0.01, eps=1e-3, weight_decay=0.5),
    "yogi": Yogi(eps=1e-3, weight_decay=0.5),
    "ademamix": AdEMAMix(
        lr=0.01, betas=(0.9, 0.999, 0.99), alpha=2.0, alpha_warmup=40, beta3_warmup=40, eps=1e-3, weight_decay=0.5
    ),
    "adopt": ADOPT(lr=0.01, betas=(0.9, 0.99), eps=0.5, weight_decay=0.5),
    "adan": Adan(lr=0.01, eps=1e-3, weight_decay=0.5),
    "schedulefreesgd": ScheduleFreeSGD(lr=0.1, weight_decay=0.02, warmup_steps=10),
    "schedulefreeadamw": ScheduleFreeAdamW(lr=0.02, eps=1e-3, weight_decay=0.5, warmup_steps=10, r=1.0),
    "laprop": LaProp(lr=halving, eps=1e-3, weight_decay=0.1),
    "sophiag": SophiaG(lr=0.01, rho=0.5, weight_decay=0.5),
    "gpaadamw": GPAAdamW(lr=0.02, eps=1e-3, weight_decay=0.1, eval_interp_coeff=0.5),
    "signum": Signum(lr=0.01, beta=0.965, weight_decay=0.5),
    "qhadam": QHAdam(lr=halving, nus=(0.7, 0.9), eps=1e-3, weight_decay=0.5),
    "madgrad": MADGRAD(lr=halving, eps=1e-3, weight_decay=0.02),
    "rprop": Rprop(etas=(0.6, 1.1), step_sizes=(1e-4, 0.03)),
    "asgd": ASGD(lr=0.1, lambd=0.01, t0=20.0, weight_decay=0.02),
    "noise-sgd": GradientNoise(SGD(lr=0.1)),
    "noise-adam": GradientNoise(Adam(lr=0.01, eps=1e-3), eta=0.3),
    "clip-momentum": ClipByValue(Momentum(lr=0.1), max_value=0.25),
    "cautious-adam": Cautious(Adam(lr=0.01, eps=1e-3), weight_decay=0.5),
    "ema-adam": EMA(Adam(lr=0.01, eps=1e-3), decay=0.9),
    "grokfast-adam": Grokfast(Adam(lr=0.01, eps=1e-3, weight_decay=0.5), alpha=0.9, lamb=0.5),
    "lookahead-adam": Lookahead(Adam(lr=0.01, eps=1e-3), k=3, alpha=0.6),
}

"""The update rules, one file each, and RULES, the table that tests, docs and benchmarks iterate over."""

from fastopt.kernels.rules.adadelta import Adadelta
from fastopt.kernels.rules.adagrad import Adagrad
from fastopt.kernels.rules.adam import Adam
from fastopt.kernels.rules.adamax import Adamax
from fastopt.kernels.rules.cautious import Cautious
from fastopt.kernels.rules.clip import ClipByGlobalNorm, ClipByValue
from fastopt.kernels.rules.ema import EMA
from fastopt.kernels.rules.gradient_noise import GradientNoise
from fastopt.kernels.rules.lamb import LAMB
from fastopt.kernels.rules.lars import LARS
from fastopt.kernels.rules.lion import Lion
from fastopt.kernels.rules.mars import MARS
from fastopt.kernels.rules.momentum import Momentum
from fastopt.kernels.rules.nadam import NAdam
from fastopt.kernels.rules.novograd import NovoGrad
from fastopt.kernels.rules.prodigy import Prodigy
from fastopt.kernels.rules.radam import RAdam
from fastopt.kernels.rules.rmsprop import RMSprop
from fastopt.kernels.rules.scaled_gradient import ScaledGradient
from fastopt.kernels.rules.sgd import SGD
from fastopt.kernels.rules.skip import SkipNonfinite, skip_unless
from fastopt.kernels.rules.stableadamw import StableAdamW
from fastopt.kernels.rules.total import total
from fastopt.kernels.rules.zero import ZeroGradients

# By the name the command line knows a rule by; without those that go around a rule.
RULES: dict[str, type] = {
    rule.__name__.lower(): rule
    for rule in (
        *(SGD, Momentum, RMSprop, Adam, Adagrad, Adadelta, Adamax, NAdam, RAdam, Lion),
        *(LAMB, LARS, StableAdamW, MARS, NovoGrad, Prodigy),
    )
}

__all__ = [
    "EMA",
    "LAMB",
    "LARS",
    "MARS",
    "RULES",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "Adamax",
    "Cautious",
    "ClipByGlobalNorm",
    "ClipByValue",
    "GradientNoise",
    "Lion",
    "Momentum",
    "NAdam",
    "NovoGrad",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "ScaledGradient",
    "SkipNonfinite",
    "StableAdamW",
    "ZeroGradients",
    "skip_unless",
    "total",
]

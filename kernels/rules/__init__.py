"""The update rules, one file each, and RULES, the table that tests, docs and benchmarks iterate over."""

from fastopt.kernels.rules.adadelta import Adadelta
from fastopt.kernels.rules.adagrad import Adagrad
from fastopt.kernels.rules.adam import Adam
from fastopt.kernels.rules.adamax import Adamax
from fastopt.kernels.rules.gradient_noise import GradientNoise
from fastopt.kernels.rules.lion import Lion
from fastopt.kernels.rules.momentum import Momentum
from fastopt.kernels.rules.nadam import NAdam
from fastopt.kernels.rules.radam import RAdam
from fastopt.kernels.rules.rmsprop import RMSprop
from fastopt.kernels.rules.scaled_gradient import ScaledGradient
from fastopt.kernels.rules.sgd import SGD

# By the name the command line knows a rule by. GradientNoise and ScaledGradient are not among them: they
# wrap a rule and are none by themselves.
RULES: dict[str, type] = {
    rule.__name__.lower(): rule
    for rule in (SGD, Momentum, RMSprop, Adam, Adagrad, Adadelta, Adamax, NAdam, RAdam, Lion)
}

__all__ = [
    "RULES",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "Adamax",
    "GradientNoise",
    "Lion",
    "Momentum",
    "NAdam",
    "RAdam",
    "RMSprop",
    "ScaledGradient",
]

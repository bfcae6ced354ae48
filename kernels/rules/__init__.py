"""The update rules, one file each, and RULES, the table that tests, docs and benchmarks iterate over."""

from fastopt.kernels.rules.accumulated import accumulated
from fastopt.kernels.rules.adabelief import AdaBelief
from fastopt.kernels.rules.adadelta import Adadelta
from fastopt.kernels.rules.adagrad import Adagrad
from fastopt.kernels.rules.adam import Adam
from fastopt.kernels.rules.adamax import Adamax
from fastopt.kernels.rules.adan import Adan
from fastopt.kernels.rules.ademamix import AdEMAMix
from fastopt.kernels.rules.adopt import ADOPT
from fastopt.kernels.rules.asgd import ASGD
from fastopt.kernels.rules.cautious import Cautious
from fastopt.kernels.rules.clip import ClipByGlobalNorm, ClipByValue
from fastopt.kernels.rules.ema import EMA
from fastopt.kernels.rules.gpa import GPAAdamW
from fastopt.kernels.rules.gradient_noise import GradientNoise
from fastopt.kernels.rules.grokfast import Grokfast
from fastopt.kernels.rules.lamb import LAMB
from fastopt.kernels.rules.laprop import LaProp
from fastopt.kernels.rules.lars import LARS
from fastopt.kernels.rules.lion import Lion
from fastopt.kernels.rules.lookahead import Lookahead
from fastopt.kernels.rules.madgrad import MADGRAD
from fastopt.kernels.rules.mars import MARS
from fastopt.kernels.rules.matrixwise import matrixwise
from fastopt.kernels.rules.momentum import Momentum
from fastopt.kernels.rules.muon import Muon
from fastopt.kernels.rules.nadam import NAdam
from fastopt.kernels.rules.novograd import NovoGrad
from fastopt.kernels.rules.prodigy import Prodigy
from fastopt.kernels.rules.qhadam import QHAdam
from fastopt.kernels.rules.radam import RAdam
from fastopt.kernels.rules.rmsprop import RMSprop
from fastopt.kernels.rules.rprop import Rprop
from fastopt.kernels.rules.scaled_gradient import ScaledGradient
from fastopt.kernels.rules.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from fastopt.kernels.rules.sgd import SGD
from fastopt.kernels.rules.signum import Signum
from fastopt.kernels.rules.skip import SkipNonfinite, skip_unless
from fastopt.kernels.rules.sophia import SophiaG
from fastopt.kernels.rules.stableadamw import StableAdamW
from fastopt.kernels.rules.total import total
from fastopt.kernels.rules.yogi import Yogi
from fastopt.kernels.rules.zero import ZeroGradients

# By the name the command line knows a rule by; without those that go around a rule.
RULES: dict[str, type] = {
    rule.__name__.lower(): rule
    for rule in (
        *(SGD, Momentum, RMSprop, Adam, Adagrad, Adadelta, Adamax, NAdam, RAdam, Lion),
        *(AdaBelief, Yogi, AdEMAMix, ADOPT, Adan, ScheduleFreeSGD, ScheduleFreeAdamW, LaProp, Signum, QHAdam),
        *(MADGRAD, Rprop, ASGD, SophiaG, GPAAdamW),
        *(LAMB, LARS, StableAdamW, MARS, NovoGrad, Prodigy),
    )
}

MATRIX_RULES: dict[str, type] = {"muon": Muon}
"""Those for matrices, with another rule for all else, as their setting `aux`."""

__all__ = [
    "ADOPT",
    "ASGD",
    "EMA",
    "LAMB",
    "LARS",
    "MADGRAD",
    "MARS",
    "MATRIX_RULES",
    "RULES",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "Adamax",
    "Adan",
    "Cautious",
    "ClipByGlobalNorm",
    "ClipByValue",
    "GPAAdamW",
    "GradientNoise",
    "Grokfast",
    "LaProp",
    "Lion",
    "Lookahead",
    "Momentum",
    "Muon",
    "NAdam",
    "NovoGrad",
    "Prodigy",
    "QHAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScaledGradient",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Signum",
    "SkipNonfinite",
    "SophiaG",
    "StableAdamW",
    "Yogi",
    "ZeroGradients",
    "accumulated",
    "matrixwise",
    "skip_unless",
    "total",
]

"""fastopt: the optimizer step as fast as memory allows, with the same bits on every backend.

    rule = fastopt.Adam(lr=1e-3)
    fastopt.update(rule, t, {"p": p, "g": g, "m": m, "v": v})        stateless, in place, one fused pass
    opt = fastopt.Optimizer(rule, {"w": w, "b": b}); opt.step()      stateful, named parameters in flat buffers

Importing fastopt imports NumPy and nothing heavier; a compiler is imported at the first step that needs one.
"""

import numpy  # noqa: F401 — first, not within other imports: so deep in them CPython 3.11 takes 20 ms longer

from fastopt import schedules
from fastopt.averages import EWA
from fastopt.batches import minibatches, suggest_batch_size
from fastopt.errors import (
    BackendError,
    CacheWarning,
    CheckpointError,
    FastoptError,
    LayoutError,
    RuleError,
    SettingError,
)
from fastopt.export import export_source
from fastopt.files import load, save
from fastopt.kernels import rules
from fastopt.kernels.formats import PRESETS, STORAGES
from fastopt.kernels.rules import (
    ADOPT,
    ASGD,
    EMA,
    LAMB,
    LARS,
    MADGRAD,
    MARS,
    MATRIX_RULES,
    RULES,
    SGD,
    AdaBelief,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    Adan,
    AdEMAMix,
    Cautious,
    ClipByGlobalNorm,
    ClipByValue,
    GPAAdamW,
    GradientNoise,
    Grokfast,
    LaProp,
    Lion,
    Lookahead,
    Momentum,
    Muon,
    NAdam,
    NovoGrad,
    Prodigy,
    QHAdam,
    RAdam,
    RMSprop,
    Rprop,
    ScaledGradient,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    Signum,
    SkipNonfinite,
    SophiaG,
    StableAdamW,
    Yogi,
    ZeroGradients,
    accumulated,
    matrixwise,
    skip_unless,
    total,
)
from fastopt.kernels.threads import get_threads, set_threads
from fastopt.optimizer import Optimizer
from fastopt.update import update

__version__ = "0.1.0"

__all__ = [
    "ADOPT",
    "ASGD",
    "EMA",
    "EWA",
    "LAMB",
    "LARS",
    "MADGRAD",
    "MARS",
    "MATRIX_RULES",
    "PRESETS",
    "RULES",
    "SGD",
    "STORAGES",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "Adamax",
    "Adan",
    "BackendError",
    "CacheWarning",
    "Cautious",
    "CheckpointError",
    "ClipByGlobalNorm",
    "ClipByValue",
    "FastoptError",
    "GPAAdamW",
    "GradientNoise",
    "Grokfast",
    "LaProp",
    "LayoutError",
    "Lion",
    "Lookahead",
    "Momentum",
    "Muon",
    "NAdam",
    "NovoGrad",
    "Optimizer",
    "Prodigy",
    "QHAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "RuleError",
    "ScaledGradient",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "SettingError",
    "Signum",
    "SkipNonfinite",
    "SophiaG",
    "StableAdamW",
    "Yogi",
    "ZeroGradients",
    "accumulated",
    "export_source",
    "get_threads",
    "load",
    "matrixwise",
    "minibatches",
    "rules",
    "save",
    "schedules",
    "set_threads",
    "skip_unless",
    "suggest_batch_size",
    "total",
    "update",
]

_ELSEWHERE = {
    "AdamW": "fastopt.Adam has decoupled weight decay; fastopt.torch.AdamW is torch's (import fastopt.torch)",
    "torch": "import fastopt.torch, which `import fastopt` alone does not, because it imports torch",
}


def __getattr__(name: str) -> object:
    from fastopt.errors import suggest

    do = _ELSEWHERE.get(name) or suggest(name, __all__)
    raise AttributeError(f"module 'fastopt' has no attribute {name!r}: {do}", name=name)

"""fastopt for PyTorch: torch.optim's optimizers, and any rule, with fastopt's steps.

    optimizer = fastopt.torch.AdamW(model.parameters(), lr=1e-3)        instead of torch.optim.AdamW(…)

Arguments, defaults and semantics are torch's, and so are the names of state: checkpoints go both ways. Beyond torch's
arguments each takes

    flatten          move parameters and state of each group into flat buffers, in which each tensor has a storage of
                     its own
    storage          how each buffer is stored, as in `fastopt.Optimizer`: "8bit", "split", …; None is the parameter's
                     own type
    seed             seed of gradient noise and stochastic rounding
    max_norm         scale gradients down where their norm over all parameters is above this, within the step; the norm
                     is then `optimizer.grad_norm`, and `p.grad` stays as it was
    skip_nonfinite   take no step where a gradient is infinite or NaN, and do not count it; `optimizer.skipped` is then
                     one more. On a device, which alone knows, it needs capturable=True
    ema              decay of an average of the parameters, as 0.999, kept in the same pass: see `fastopt.EMA`. It is
                     `optimizer.state[p]["ema"]`, and in place of the parameters within `with optimizer.averaged():`

Rules that torch does not have are classes of the same names with their own settings, and `Fused` takes any other, or
yours. ScheduleFreeSGD, ScheduleFreeAdamW and GPAAdamW have `train()` and `eval()`. `Muon` takes `aux=`, another rule
for all that is no matrix.

`in_backward` makes one whose steps happen in the backward pass, so that gradients need no memory; `offload` makes one
whose state lies in the CPU's memory, where it steps.

Import it by name; `import fastopt` alone does not import torch.
"""

from fastopt.torch.in_backward import in_backward
from fastopt.torch.muon import Muon
from fastopt.torch.of_rules import (
    ADOPT,
    LAMB,
    LARS,
    MADGRAD,
    MARS,
    AdaBelief,
    Adan,
    AdEMAMix,
    GPAAdamW,
    LaProp,
    Lion,
    NovoGrad,
    Prodigy,
    QHAdam,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    Signum,
    SophiaG,
    StableAdamW,
    Yogi,
)
from fastopt.torch.offload import offload
from fastopt.torch.optimizers import (
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Fused,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
)

__all__ = [
    "ADOPT",
    "ASGD",
    "LAMB",
    "LARS",
    "MADGRAD",
    "MARS",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "Fused",
    "GPAAdamW",
    "LaProp",
    "Lion",
    "Muon",
    "NAdam",
    "NovoGrad",
    "Prodigy",
    "QHAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Signum",
    "SophiaG",
    "StableAdamW",
    "Yogi",
    "in_backward",
    "offload",
]

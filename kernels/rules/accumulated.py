"""Numbers that depend on all steps so far, for `scalars` of rules."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fastopt.errors import RuleError


def accumulated(step: Callable[..., Any], t: Any, start: Any, *settings: Any) -> Any:
    """Return xₜ of the sequence x₀ = start, xₖ = step(xₖ₋₁, k, *settings): a sum or a product over the steps up to t.

    The number last asked for is remembered for each `step`, `start` and `settings`, of which there may be 64: the next
    step calls `step` once, an earlier one begins at k = 1 again, and so does every one whose `step` is made anew, as a
    lambda in `scalars` is. The bits are the same in any order, and in any number of threads.

    `fastopt export` writes it as a loop, which it cannot do with a cache of a rule's own. That loop begins at k = 1
    each time it is called: where terms beyond some step no longer show, pass min(t, that step).

    Args:
        step: a function of a module that takes xₖ₋₁, k = 1, 2, … and the settings; it returns xₖ, a number.
        t: the number of terms, 0 or more.
        start: x₀.
        *settings: numbers, never schedules.

    Raises:
        RuleError: a setting is no number.

    >>> import fastopt
    >>> def add_inverse(total, k, power):
    ...     return total + 1 / k**power
    >>> [round(fastopt.accumulated(add_inverse, t, 0.0, 2.0), 4) for t in (1, 2, 3)]
    [1.0, 1.25, 1.3611]

    """
    if symbolic := getattr(type(t), "accumulated", None):  # scalars(t) is being traced, for another language
        return symbolic(t, step, start, settings)
    step = getattr(step, "traced_from", step)  # of a copy for symbols
    try:
        latest = _latest(step, start, settings, repr((start, settings)))
    except TypeError:
        latest = None
    if latest is None or not callable(step):
        raise RuleError(
            "what is accumulated over steps depends on numbers that stay as they are, and on no schedule.",
            got=f"{step!r}, {start!r}, {settings!r}",
            expected="a function of xₖ₋₁, k and the settings; a number; settings that are numbers",
            where="accumulated",
        )
    k, x = latest[0]
    if not k <= t:
        k, x = 0, start
    while k + 1 <= t:
        k += 1
        x = step(x, k, *settings)
    latest[0] = (k, x)  # one assignment of a tuple: threads that step at once only lose each other's progress
    return x


@lru_cache(maxsize=64)
def _latest(step, start, settings, text):
    """Return the cell that remembers the number last asked for, as (t, xₜ); None if a setting is no number.

    The text tells apart what Python takes for equal: 3 and 3.0, 0.0 and −0.0.
    """
    return None if any(callable(x) for x in (start, *settings)) else [(0, start)]

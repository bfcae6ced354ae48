"""What rules with trust ratios and clipped updates take of a tensor: its norm, and the mean of its elements."""

from typing import Any

import numpy as np

from fastopt.kernels.rules.total import total


def norm(x: Any) -> Any:
    """Return the Euclidean norm of a value over its tensor; squares below the smallest number count as zero.

    >>> import numpy as np
    >>> norm(np.array([3.0, 4.0]))
    np.float64(5.0)
    """
    return np.sqrt(total(x * x))


def mean(x: Any) -> Any:
    """Return the mean of a value over its tensor.

    >>> import numpy as np
    >>> mean(np.array([3.0, 4.0]))
    np.float64(3.5)
    """
    return total(x) / total(np.ones_like(x))

"""NAdam with a given product of momenta: in torch it is state, because its factors may have changed on the way."""

from dataclasses import dataclass

from fastopt.kernels import rules


@dataclass(frozen=True)
class NAdam(rules.NAdam):
    """NAdam with the product Πₜ of the momenta up to step t as a setting."""

    product: float = 1.0

    def scalars(self, t):
        """Compute the step's scalars in float64."""
        return self.scalars_after(t, self.product)

"""`train()` and `eval()` of optimizers whose gradients are computed at another point than the model is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch  # pyright: ignore[reportMissingImports]

from fastopt.errors import LayoutError, raised_by
from fastopt.torch.adapter import Adapter

TRAINED = "trained"
"""Name, in the state saved in evaluation, of the values that a parameter has in training."""


class Averaging(Adapter):
    """An optimizer that is switched like a model: `eval()` puts averages in place of parameters, `train()` back.

    A new one is in training. State is saved and loaded in either mode, with the model's: saved in evaluation, the
    model's parameters are averages, and the optimizer's state has those of training too, so that training goes on bit
    for bit after `train()`.
    """

    _kept: list[tuple[Any, Any, Any]] | None = None  # while in evaluation: parameters, values in training, averages

    def eval(self) -> None:
        """Put averages in place of the parameters, until `train()`; those that have not been stepped stay."""
        with raised_by(f"{type(self).__name__}.eval"), self._lock, torch.no_grad():
            if self._kept is None:
                kept = self._averages()
                self._kept = kept
                self._put_averages(kept)

    def train(self) -> None:
        """Put the parameters of training back in place, bit for bit."""
        with self._lock:
            if self._kept is not None:
                self._put_back(self._kept)
                self._kept = None

    def _where_to_train(self) -> str:
        return "call train() first" if self._kept is not None else super()._where_to_train()

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in either mode; see `Adapter.state_dict`."""
        with self._lock:
            if self._kept is None:
                return super().state_dict()
            self._averaged = False  # of what is in the state nothing is an average
            try:
                saved = super().state_dict()
            finally:
                self._averaged = True
            order = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
            for p, own, _ in self._kept:
                saved["state"][order[p]] = {**saved["state"].get(order[p], {}), TRAINED: own.clone()}
            return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, and the mode in which it was saved; the model's own is to be of the same moment.

        Raises what `Adapter.load_state_dict` raises; nothing is changed then.
        """
        with self._lock:
            params = [p for group in self.param_groups for p in group["params"]]
            state = dict(state_dict.get("state", {}))
            trained: dict[int, Any] = {}
            for i, entries in state.items():
                if isinstance(entries, Mapping) and TRAINED in entries:
                    trained[i] = entries[TRAINED]
                    state[i] = {name: x for name, x in entries.items() if name != TRAINED}
            kept = []
            for i, x in trained.items():
                with raised_by(f"{type(self).__name__}.load_state_dict"):
                    kept.append((params[i], _value_in_training(x, params[i], i), None))
            before, self._averaged = self._averaged, False
            try:
                super().load_state_dict({**state_dict, "state": state})
            except BaseException:
                self._averaged = before
                raise
            self._kept, self._averaged = kept or None, bool(kept)


def _value_in_training(value: Any, p: Any, i: int) -> Any:
    """Return a copy of a parameter's saved value in training, or raise a LayoutError."""
    if not isinstance(value, torch.Tensor) or value.shape != p.shape or not value.is_floating_point():
        got = f"{value.dtype}{list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)[:60]
        what = f"the state {TRAINED!r} of parameter {i} is not a value of the parameter."
        raise LayoutError(what, got=got, expected=f"{p.dtype}{list(p.shape)}", do="load what state_dict() returned")
    return value.detach().to(p.device, p.dtype, copy=True)

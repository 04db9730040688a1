"""What a search on the text encoder may spend: its passes have a number of their own, bound to the one budget.

A pass of SD v1.4's text encoder is about a sixtieth of one of its UNet (13 against 800 GFLOP a sample), so it is no
model call; but a search that asks nothing else would have no bound.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from efface.eval.oracle import Budget

ENCODER_PASSES = 50
"""Samples through the text encoder that a search may spend for each model call of the budget."""

BUDGETED = "its budget is in model calls: a sample through the network is one, its gradient another"
SEARCH_BUDGETED = (
    f"its images are model calls of the budget; its search may spend {ENCODER_PASSES} samples through the text encoder "
    "for each of them, and ends with what it has found until then"
)
"""What `efface attacks NAME` says of budgets; the second of a search on the base's text encoder."""


def encoder_budget(calls: int) -> Budget:
    """Of an attack with so many model calls."""
    return Budget(calls * ENCODER_PASSES, unit="passes of the text encoder")


@contextmanager
def counted_encoder(text_encoder: nn.Module, budget: Budget) -> Iterator[None]:
    """Every sample through the text encoder within the block is on the budget, and once more for its gradient.

    A pass for which too few are left raises BudgetExhausted, before it is computed.
    """

    def before(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        budget.spend(len(inputs[0] if inputs else named["input_ids"]))

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if output.last_hidden_state.requires_grad:
            budget.spend(len(output.last_hidden_state))

    handles = (
        text_encoder.register_forward_pre_hook(before, with_kwargs=True),
        text_encoder.register_forward_hook(after),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

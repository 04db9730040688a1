"""What each method states about its passes, against the method at work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from efface.models.base import Base, read_base
from efface.models.shapes import ModelShapes, model_shapes
from efface.train.method import GradientMethod, get_method, method_names

BATCHES = 12  # enough for a roll-out of the full length and of none


@pytest.fixture
def tiny_shapes(tiny_base_folder: Path) -> ModelShapes:
    return model_shapes(read_base(tiny_base_folder))


def recorded(base: Base, built: Any, student: Any) -> tuple[list[int], list[list[int]], set[int]]:
    """Rows of the passes with gradient, rows of all others batch by batch, and the latents' sides."""
    trained: list[int] = []
    frozen: list[list[int]] = []
    latent_sizes: set[int] = set()

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        rows, _, height, width = inputs[0].shape
        latent_sizes.update((height, width))
        trained.append(rows) if torch.is_grad_enabled() else frozen[-1].append(rows)

    for unet in (base.unet, student.module):
        unet.register_forward_pre_hook(note)
    for index in range(BATCHES):
        frozen.append([])
        with torch.no_grad():
            batch = built.batch(index)
        built.loss(student, batch)
    return trained, frozen, latent_sizes


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("esd", {}),
        ("esd", {"batch_size": 3, "erase_from": "an animal"}),
        ("esd", {"guidance_scale": 1, "on_policy": False}),
        ("ca", {}),
        ("fmn", {"batch_size": 2}),
        ("sdd", {"batch_size": 2}),
        ("salun", {}),
        ("spm", {"batch_size": 2, "anchor_count": 4}),
        ("spm", {"anchor_weight": 0, "sizes": (8, 16), "guidance_scale": 1}),
        ("eap", {"batch_size": 2}),
        ("age", {"guidance_scale": 1}),
        ("receler", {"batch_size": 2}),
        ("ca", {"prior_weight": 0, "objective": "noise"}),
        ("fade", {"neighbours": ("a dog", "a fox")}),
        ("fade", {"neighbours": ("a dog",), "batch_size": 2, "sizes": (8, 16), "guidance_scale": 1}),
    ],
)
def test_the_rows_are_those_of_the_method_at_work(
    name: str, config: dict[str, Any], prepare: Callable[..., Any], tiny_base: Base, tiny_shapes: ModelShapes
) -> None:
    built, student = prepare(name, **config)
    result = built.cost(tiny_shapes)
    trained, frozen, latent_sizes = recorded(tiny_base, built, student)
    assert set(trained) == {result.trained_rows} and len(trained) == BATCHES
    assert max((rows for batch in frozen for rows in batch), default=0) == result.frozen_rows
    assert latent_sizes == set(result.latent_sizes or [tiny_shapes.latent_size])
    # Roll-outs are of random length: the mean lies between the shortest and the longest.
    sums = [sum(batch) for batch in frozen]
    assert min(sums) <= result.mean_frozen_rows <= max(sums)


def test_every_gradient_method_trains_some_rows(tiny_shapes: ModelShapes, prepare: Callable[..., Any]) -> None:
    gradient = [name for name in method_names() if issubclass(get_method(name), GradientMethod)]
    costs = {name: prepare(name)[0].cost(tiny_shapes) for name in gradient}
    of_text = {name for name in gradient if get_method(name).network == "text_encoder"}  # type: ignore[attr-defined]
    assert costs and all((cost.trained_rows, cost.text_rows)[name in of_text] > 0 for name, cost in costs.items())

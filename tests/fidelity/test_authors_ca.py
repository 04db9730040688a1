"""Three optimiser steps of CA are those of the authors' script, on the same images, noises, timesteps and captions.

docs/fidelity.md says how its numbers were recorded.
"""

import json
from typing import Any

import numpy as np
import pytest
import torch

from efface.concepts.concept import ConceptSet
from efface.models.base import Base
from efface.train.data.anchor_images import AnchorImages, Draw
from efface.train.data.views import View
from efface.train.method import UnlearningTask, parse_config
from efface.train.methods.ca import CA
from efface.train.trainer.loop import train
from tests.fidelity.authors_code import assert_same_steps, noted_gradients, recorded, recorded_facts

FEW_IMAGES = {"anchor_images": 1, "image_steps": 1}  # the recorded samples take the place of these


@pytest.mark.parametrize(
    ("case", "preset", "concept", "batch_size", "config"),
    [
        ("style", "authors", "Van Gogh", 8, {}),
        ("object", "authors-objects", "r2d2", 2, {"effective_learning_rate": 4e-6}),
        ("prior", "authors-objects", "r2d2", 2, {"effective_learning_rate": 8e-6, "prior_weight": 1}),
    ],
)
def test_the_presets_are_the_authors_commands(
    case: str,
    preset: str,
    concept: str,
    batch_size: int,
    config: dict[str, Any],
    recorded_base: Base,
    authors_concepts: ConceptSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Objects in batches of 2 on one process: the authors' script takes a rate of 2e-6 x 2 then, with the prior x 2."""
    found = {name.removeprefix(f"{case}/"): value for name, value in recorded("ca").items() if name.startswith(case)}
    captions = json.loads(recorded_facts("ca")[f"{case}/captions"])

    def draw(images: AnchorImages, purpose: str, index: int) -> Draw:
        rows = slice(0, batch_size) if purpose == "ablate" else slice(batch_size, None)
        clean, noise, timesteps = (found[f"{name}/{index}"][rows] for name in ("latents", "noise", "timesteps"))
        anchors = captions["anchors" if purpose == "ablate" else "priors"][index]
        return Draw(clean, noise, timesteps, anchors, captions["targets"][index], found[f"regions/{index}"].float())

    monkeypatch.setattr(AnchorImages, "draw", draw)
    config = {**FEW_IMAGES, **config, "batch_size": batch_size, "samples_seen": 3 * batch_size}
    task = UnlearningTask(recorded_base, (authors_concepts.find(concept),), authors_concepts, seed=0)
    with noted_gradients() as gradients:
        trained = train(CA(parse_config("ca", config, preset)), task)

    torch.testing.assert_close(torch.tensor(trained.losses), found["losses"], rtol=1e-4, atol=0)
    expected = {name.removeprefix("change/"): value for name, value in found.items() if name.startswith("change/")}
    assert trained.tensors.keys() == expected.keys()
    assert_same_steps(trained.tensors, recorded_base.tensors(), expected, gradients)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_view_has_the_authors_pixels(number: int) -> None:
    """Of a pattern of 32 x 32: whole, shrunk onto grey, and enlarged."""
    found = recorded("ca")
    rows, columns = np.indices((32, 32))
    image = ((rows * 5 + columns * 2)[..., None] + np.array([0, 17, 40])).astype(np.uint8)
    scale, top, left = found[f"view/{number}/place"].tolist()
    pixels = View(32, False, scale, top, left).pixels(image)
    np.testing.assert_array_equal(pixels, found[f"view/{number}/pixels"].numpy())
    np.testing.assert_array_equal(View(32, True, scale, top, left).pixels(image[:, ::-1]), pixels)


def test_the_region_of_a_view_is_the_authors_mask() -> None:
    found = recorded("ca")
    for place, mask in zip(found["places"].tolist(), found["masks"], strict=True):
        assert torch.equal(View(64, False, *place).region(8)[0], mask.float()), place

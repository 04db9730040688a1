"""The concept neighbourhood: cosine of mean features, computed once per concept and kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efface.errors import UserError
from efface.models.base import Base
from efface.train.data import neighbours as neighbourhood
from efface.train.data.neighbours import concept_features, mean_feature, nearest, rank_by_similarity


def test_every_image_counts_alike_however_long_its_feature() -> None:
    features = torch.tensor([[3.0, 4.0], [10.0, 0.0]])
    torch.testing.assert_close(mean_feature(features), torch.tensor([0.8, 0.4], dtype=torch.float64))


def test_neighbours_are_ordered_by_angle_and_not_by_length() -> None:
    target = torch.tensor([1.0, 0.0])
    features = torch.tensor([[0.0, 1.0], [100.0, 100.0], [0.01, 0.001], [-1.0, 0.0]])
    assert rank_by_similarity(target, features) == [2, 1, 0, 3]


def test_a_tie_goes_to_the_earlier_candidate() -> None:
    features = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, 3.0], [1.0, 1.0]])
    assert rank_by_similarity(torch.ones(2), features) == [1, 3, 0, 2]


class Drawn:
    """A sampler of grey images, one shade a prompt, that counts; and an encoder that sees the shade as an angle."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prompts: list[str] = []
        monkeypatch.setattr(neighbourhood, "sample", self.sample)
        monkeypatch.setattr(neighbourhood, "load_image_encoder", lambda spec, device: self.encode)

    def sample(self, base: Base, recipe: Any, requests: Any) -> np.ndarray:
        self.prompts += [request.prompt for request in requests if request.seed == 0]
        return np.stack([np.full((2, 2, 3), len(request.prompt), np.uint8) for request in requests])

    def encode(self, images: np.ndarray) -> torch.Tensor:
        angle = torch.from_numpy(images[:, 0, 0, 0] / 20)
        return torch.stack([angle.cos(), angle.sin()], dim=1)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tiny_base: Base) -> Drawn:
    tiny_base.spec = tiny_base.spec.model_copy(update={"image_encoder": "an encoder"})
    return Drawn(monkeypatch)


def test_the_nearest_candidates_come_first_and_at_most_so_many(tiny_base: Base, drawn: Drawn) -> None:
    candidates = ["a" * 9, "a" * 4, "a" * 7, "a" * 20]
    assert nearest(tiny_base, "a" * 5, candidates, count=3, images=2) == ["a" * 4, "a" * 7, "a" * 9]
    assert len(nearest(tiny_base, "a" * 5, candidates, count=9, images=2)) == 4


def test_what_is_in_the_cache_is_not_drawn_again(tiny_base: Base, drawn: Drawn, tmp_path: Path) -> None:
    prompts = [f"concept {'x' * n}" for n in range(20)]
    first = concept_features(tiny_base, prompts, images=2, cache=tmp_path)
    assert drawn.prompts == prompts
    again = concept_features(tiny_base, [*prompts[::-1], "new"], images=2, cache=tmp_path)
    assert drawn.prompts == [*prompts, "new"]
    assert torch.equal(again[:-1], first.flip(0))
    concept_features(tiny_base, prompts[:1], images=3, cache=tmp_path)
    assert drawn.prompts == [*prompts, "new", prompts[0]], "more images are another question"


def test_a_base_without_an_image_encoder_says_what_to_do(tiny_base: Base) -> None:
    with pytest.raises(UserError, match="names no image_encoder"):
        nearest(tiny_base, "a cat", ["a dog"], count=1, images=1)

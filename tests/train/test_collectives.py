"""What processes make together before they train is shared out, and all get what one process alone makes."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from two_processes import together

from efface.models.base import Base, load_base
from efface.models.recipe import Recipe
from efface.train.collectives import all_gather, distributed_map
from efface.train.data import latents as data
from efface.train.data import neighbours as neighbourhood

PROMPTS = [f"a cat {'x' * n}" for n in range(7)]


def test_a_process_alone_does_everything_in_order() -> None:
    assert distributed_map(["a", "b", "c"], str.upper) == ["A", "B", "C"]
    assert all_gather(7) == [7]


def two_share(rank: int) -> None:
    torch.distributed.init_process_group("gloo")
    mine = []

    def do(item: int) -> int:
        mine.append(item)
        return 10 * item

    assert distributed_map(list(range(5)), do) == [0, 10, 20, 30, 40]
    assert mine == [[0, 2, 4], [1, 3]][rank]
    assert distributed_map([], do) == []
    assert all_gather("first" if rank == 0 else "second") == ["first", "second"]
    torch.distributed.destroy_process_group()


def test_two_take_turns_and_both_get_all_in_order() -> None:
    together(two_share)


def recipe() -> Recipe:
    return Recipe(name="quick", scheduler="ddim", steps=2, guidance_scale=3, height=16, width=16, batch_size=2)


def two_draw(rank: int, folder: Path, out: Path) -> None:
    """Both draw the images, and then features, each with a cache that the other does not see."""
    torch.distributed.init_process_group("gloo")
    base, cache = load_base(folder), out / f"node {rank}"
    drawn: list[str] = []
    sample = data.sample

    def counted(base: Base, recipe: Recipe, requests: Any) -> np.ndarray:
        drawn.extend(request.prompt for request in requests)
        return sample(base, recipe, requests)

    data.sample = counted
    images = data.image_posterior(base, recipe(), PROMPTS, cache)
    assert drawn == [PROMPTS[:2] + PROMPTS[4:6], PROMPTS[2:4] + PROMPTS[6:]][rank]
    again = data.image_posterior(base, recipe(), PROMPTS, cache)
    assert torch.equal(again.mean, images.mean) and len(drawn) == [4, 3][rank]
    torch.save((images.mean, images.std), out / f"images {rank}")

    # Features: the first node lost two of them, both processes draw them again.
    grey(base, drawn)
    features = neighbourhood.concept_features(base, PROMPTS, 1, cache)
    assert drawn == [PROMPTS[:2] + PROMPTS[4:6], PROMPTS[2:4] + PROMPTS[6:]][rank]
    torch.save(features, out / f"features {rank}")
    drawn.clear()
    if rank == 0:
        shutil.rmtree(cache)
    torch.distributed.barrier()
    assert torch.equal(neighbourhood.concept_features(base, PROMPTS[:3], 1, cache), features[:3])
    assert drawn == [PROMPTS[:2], PROMPTS[2:3]][rank]
    torch.distributed.destroy_process_group()


def grey(base: Base, drawn: list[str]) -> None:
    """Concept features of images of one pixel, as bright as the prompt is long; two prompts are sampled at once."""
    drawn.clear()

    def sample(base: Base, recipe: Recipe, requests: Any) -> np.ndarray:
        drawn.extend(request.prompt for request in requests)
        return np.stack([np.array([[[len(request.prompt), 5, 0]]], np.uint8) for request in requests])

    base.spec = base.spec.model_copy(update={"image_encoder": "an encoder"})
    neighbourhood.sample, neighbourhood.PROMPTS_PER_CHUNK = sample, 2
    neighbourhood.load_image_encoder = lambda *_: lambda images: torch.from_numpy(images[:, 0, 0].astype(float))


def test_a_process_group_makes_every_image_once_and_has_those_of_one_process(
    tiny_base_folder: Path, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together(two_draw, tiny_base_folder, tmp_path)
    alone = data.image_posterior(tiny_base, recipe(), PROMPTS, None)
    for name in ("sample", "PROMPTS_PER_CHUNK", "load_image_encoder"):
        monkeypatch.setattr(neighbourhood, name, getattr(neighbourhood, name))  # so that they are as before afterwards
    grey(tiny_base, [])
    features = neighbourhood.concept_features(tiny_base, PROMPTS, 1)
    for rank in range(2):
        mean, std = torch.load(tmp_path / f"images {rank}")
        assert torch.equal(mean, alone.mean) and torch.equal(std, alone.std)
        assert torch.equal(torch.load(tmp_path / f"features {rank}"), features)

"""What the tests against numbers recorded from authors' code share: the model, the concepts, and the numbers."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from efface.concepts.concept import Concept, ConceptSet
from efface.models.base import Base, load_base
from tests.fidelity.tiny_model import write_model

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def recorded_model(tmp_path_factory: pytest.TempPathFactory, write_tokenizer: Callable[[Path], int]) -> Path:
    return write_model(tmp_path_factory.mktemp("recorded") / "model", write_tokenizer)


@pytest.fixture
def recorded_base(recorded_model: Path) -> Base:
    """The model on which the authors' code was run, freshly loaded."""
    return load_base(recorded_model)


@pytest.fixture(scope="session")
def authors_concepts() -> ConceptSet:
    """The concepts of the authors' commands."""
    return ConceptSet(
        name="authors",
        version=1,
        concepts=(
            Concept(name="Van Gogh", kind="style", phrase="a painting by Van Gogh", anchor="a painting"),
            Concept(name="Picasso", kind="style", phrase="a painting by Picasso", anchor="a painting"),
            Concept(name="golf ball", kind="object", phrase="a golf ball", anchor="a basketball"),
            Concept(name="church", kind="scene", phrase="a church", anchor="a house"),
            Concept(name="r2d2", kind="object", phrase="r2d2", anchor="robot"),
            *(
                Concept(name=name, kind="nsfw", phrase=name, anchor="a meadow")
                for name in ("violence", "nudity", "harm")
            ),
            Concept(name="Blue Jay", kind="animal", phrase="a blue jay", anchor="a sparrow"),
        ),
    )


def recorded(name: str) -> dict[str, Tensor]:
    """The tensors recorded from the authors' code of a method."""
    return safetensors.torch.load_file(HERE / f"{name}.safetensors")


def recorded_facts(name: str) -> dict[str, str]:
    """What was noted beside them: the commit of the authors' repository, names of trained tensors."""
    with safetensors.safe_open(HERE / f"{name}.safetensors", "pt") as file:
        return dict(file.metadata())


def assert_same_steps(changes: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Trained weights went where the recorded ones went: 99 of 100 within 1e-4 of the longest way, all within 5e-2.

    Adam divides a gradient by its size, so one that is zero but for rounding may go anywhere; and a weight of 0.5 is
    known to 6e-8, which is 4e-4 of three steps at a rate of 5e-5.
    """
    assert changes.keys() >= expected.keys()
    longest = max(float(value.abs().max()) for value in expected.values())
    errors = torch.cat([(changes[name] - value).flatten().abs() for name, value in expected.items()]) / longest
    assert errors.quantile(0.99) < 1e-4 and errors.max() < 5e-2, errors.sort(descending=True).values[:10]

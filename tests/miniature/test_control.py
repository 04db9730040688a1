"""The model that never knew a concept: what it is trained on, and that it is a model like any other that was edited."""

from pathlib import Path

import torch

from efface.concepts.concept import load_concept_set
from efface.miniature.captions import thing_words
from efface.miniature.control import build_control, scenes_without
from efface.miniature.vocabulary import BY_NAME, OBJECTS
from efface.models.base import load_base
from efface.train.foreign_delta import foreign_delta


def test_no_scene_has_the_concept_and_every_other_thing_is_there() -> None:
    scenes = scenes_without("cat", 57)
    assert {scene.thing for scene in scenes} == {words.name for words in OBJECTS} - {"cat"}
    assert {scene.style for scene in scenes} == {"plain"}


def test_no_other_thing_is_called_what_the_concept_is_called() -> None:
    import numpy as np

    names = {"cat", *BY_NAME["cat"].aliases}
    rng = np.random.default_rng(0)
    said = {word for scene in scenes_without("cat", 500) for word in thing_words(scene, rng).replace(",", "").split()}
    assert not said & names


def test_it_is_an_edit_of_the_miniature_in_unet_and_text_encoder_alone(tmp_path: Path) -> None:
    build_control("cat", tmp_path / "control", tmp_path / "work", torch.device("cpu"), steps=0, pool=8)
    base, concepts = load_base("miniature"), load_concept_set("miniature")
    delta = foreign_delta(tmp_path / "control", base, concepts, ["cat"], "control")
    assert {name.split(".")[0] for name in delta.tensors} == {"unet", "text_encoder"}
    base.swap(delta)
    assert base.applied is delta

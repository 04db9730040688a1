"""The CLIP judge and its calibration, on a tiny CLIP with random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from efface.concepts.concept import ConceptSet
from efface.concepts.prompts import PromptSet
from efface.errors import UserError
from efface.eval.calibration.calibration import answer_requests, calibrate, calibrated, read_calibration
from efface.eval.calibration.calibration_requests import calibration_requests
from efface.eval.judges.clip import ClipJudge
from efface.eval.judging.judge_spec import load_judge
from efface.models.base import Base
from efface.models.recipe import Recipe

MADE = {"base_id": "b", "recipe_id": "r", "prompts_sha256": "p"}
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, write_tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "model"
    vocabulary = write_tokenizer(folder)
    torch.manual_seed(0)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    special = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    CLIPModel(
        CLIPConfig(
            text_config={**small, **special, "vocab_size": vocabulary},
            vision_config={**small, "image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
    ).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, CLIPTokenizer.from_pretrained(folder)).save_pretrained(folder)
    return folder


def load(tmp_path: Path, model: Path, more: str = "", calibration: Path | None = None) -> ClipJudge:
    (tmp_path / "eye.yaml").write_text(f"kind: clip\nsource: {model}\nbatch_size: 2\n{more}")
    judge = load_judge(tmp_path / "eye.yaml")
    if calibration:
        judge = calibrated(judge, read_calibration(calibration))
    assert isinstance(judge, ClipJudge)
    return judge


def test_the_score_is_the_softmax_of_with_against_without(tmp_path: Path, model: Path, world: ConceptSet) -> None:
    judge = load(tmp_path, model)
    asked = [world.find(name) for name in ("Cat", "Tulip", "Cat", "Van Gogh", "Tulip")]
    network, processor = CLIPModel.from_pretrained(model), CLIPProcessor.from_pretrained(model)
    for image, concept, score in zip(IMAGES, asked, judge.scores(IMAGES, asked), strict=True):
        texts = [f"an image of {concept.phrase}", f"an image without {concept.phrase}"]
        with torch.no_grad():
            pixels = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
            seen = network.visual_projection(network.vision_model(pixels).pooler_output)[0]
            said = [
                network.text_projection(
                    network.text_model(processor.tokenizer([text], return_tensors="pt").input_ids).pooler_output
                )[0]
                for text in texts
            ]
            cosines = torch.stack([torch.cosine_similarity(seen, text, dim=0) for text in said])
            expected = (network.logit_scale.exp() * cosines).softmax(0)[0]
        assert score == pytest.approx(float(expected), abs=1e-4)


def test_a_score_does_not_depend_on_the_images_beside_it(tmp_path: Path, model: Path, world: ConceptSet) -> None:
    judge = load(tmp_path, model)
    asked = [world.find(name) for name in ("Cat", "Tulip", "Cat", "Van Gogh", "Tulip")]
    alone = [judge.scores(IMAGES[i : i + 1], asked[i : i + 1])[0] for i in range(len(asked))]
    assert judge.scores(IMAGES, asked) == alone


def test_an_image_in_which_several_concepts_are_looked_for_is_encoded_once(
    tmp_path: Path, model: Path, world: ConceptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = load(tmp_path, model)
    asked = [world.find(name) for name in ("Cat", "Tulip", "Rose")]
    expected = [judge.scores(IMAGES[i : i + 1], [concept])[0] for i in (0, 1) for concept in asked]
    encoded: list[int] = []
    really = ClipJudge._encode_images
    monkeypatch.setattr(
        ClipJudge, "_encode_images", lambda self, images: encoded.append(len(images)) or really(self, images)
    )
    assert judge.scores(IMAGES[[0, 0, 0, 1, 1, 1]], asked * 2) == expected
    assert sum(encoded) == 2


def test_without_a_threshold_it_refuses_to_judge(tmp_path: Path, model: Path, world: ConceptSet) -> None:
    judge = load(tmp_path, model)
    for refuse in (lambda: judge.check([world.find("Cat")]), lambda: judge.judge(IMAGES[:1], [world.find("Cat")])):
        with pytest.raises(UserError, match="judge 'eye' has no threshold for Cat: calibrate it"):
            refuse()


def test_a_threshold_in_the_yaml_serves_all_concepts(tmp_path: Path, model: Path, world: ConceptSet) -> None:
    low, high = load(tmp_path, model, "threshold: 0.001"), load(tmp_path, model, "threshold: 0.999")
    for judge, present in ((low, True), (high, False)):
        assert [v.present for v in judge.judge(IMAGES, [world.find("Rose")] * 5)] == [present] * 5
    assert low.version != high.version


@pytest.fixture
def calibration(
    tmp_path: Path, model: Path, tiny_base: Base, recipe: Recipe, world: ConceptSet, prompts: PromptSet
) -> Path:
    requests = calibration_requests(prompts, world, world.all, 2, fitted=True)
    judge = load(tmp_path, model)
    answers = answer_requests(judge, tiny_base, recipe, world, requests)
    judge, found = calibrate(judge, [answers], world.all, **MADE)
    assert judge.version == found.judge_version
    found.save(tmp_path / "calibration.json")
    return tmp_path / "calibration.json"


def test_a_calibration_gives_every_concept_its_threshold_and_accuracy(
    tmp_path: Path, model: Path, world: ConceptSet, calibration: Path
) -> None:
    found = read_calibration(calibration)
    names = {concept.name for concept in world.all}
    assert set(found.thresholds) == set(found.accuracy) == names
    # On the images to measure on each of 5 concepts has 2 of its own, and the 8 of the 4 others.
    assert {(a.own, a.others, a.unreadable) for a in found.accuracy.values()} == {(2, 8, 0)}
    # Two of its own to fit on are too few, so all share the threshold of all images.
    assert {(t.own, t.others, t.pooled) for t in found.thresholds.values()} == {(10, 40, True)}
    assert len({t.value for t in found.thresholds.values()}) == 1
    judge = load(tmp_path, model, calibration=calibration)
    judge.check(world.all)
    assert judge.version == found.judge_version != load(tmp_path, model).version


def test_a_calibration_of_another_judge_is_refused(tmp_path: Path, model: Path, calibration: Path) -> None:
    with pytest.raises(UserError, match="other settings than when it was calibrated"):
        load(tmp_path, model, "absent: a picture without {concept}", calibration)
    text = calibration.read_text()
    weights = read_calibration(calibration).weights
    calibration.write_text(text.replace(weights, "0" * 64))
    with pytest.raises(UserError, match="not the one that was calibrated"):
        load(tmp_path, model, calibration=calibration)

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
from efface.eval import calibration as calibration_of
from efface.eval.calibration import Accuracy, best_threshold, calibrate, calibrated, mean_accuracy, read_calibration
from efface.eval.judge_spec import load_judge
from efface.eval.judges.clip import ClipJudge
from efface.models.base import Base
from efface.models.recipe import Recipe
from efface.models.sampler import sample

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


def test_the_threshold_of_separated_scores_lies_midway() -> None:
    assert best_threshold(np.array([0.8, 0.9]), np.array([0.1, 0.4])) == pytest.approx(0.6)


def test_the_threshold_weighs_both_errors_alike_however_many_images_each_side_has() -> None:
    # Cut at .5: recall 1, specificity .9; a cut above .7 would lose half of the only two images of the concept.
    others = np.array([0.1] * 9 + [0.7])
    assert best_threshold(np.array([0.6, 0.8]), others) == pytest.approx(0.35)


def test_scores_that_are_all_the_same_still_have_a_threshold() -> None:
    assert best_threshold(np.array([0.5]), np.array([0.5])) == 0.5


@pytest.fixture
def calibration(
    tmp_path: Path, model: Path, tiny_base: Base, recipe: Recipe, world: ConceptSet, prompts: PromptSet
) -> Path:
    judge, found = calibrate(load(tmp_path, model), tiny_base, recipe, world, prompts, world.all, [0, 1, 2, 3])
    assert judge.version == found.judge_version
    found.save(tmp_path / "calibration.json")
    return tmp_path / "calibration.json"


def test_a_calibration_gives_every_concept_its_threshold_and_accuracy(
    tmp_path: Path, model: Path, world: ConceptSet, calibration: Path
) -> None:
    found = read_calibration(calibration)
    names = {concept.name for concept in world.all}
    assert set(found.thresholds) == set(found.accuracy) == names
    # Two of the four seeds are for fitting; on the two others each of 5 concepts has 2 images of its own.
    assert {(a.own, a.others, a.unreadable) for a in found.accuracy.values()} == {(2, 8, 0)}
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


@pytest.fixture
def black(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes these images of the next calibration black, by their number."""

    def paint(*numbers: int) -> None:
        def draw(*given: Any) -> np.ndarray:
            images = sample(*given)
            images[list(numbers)] = 0
            return images

        def see(self: ClipJudge, images: np.ndarray, asked: Any) -> list[float]:
            assert images.any(axis=(1, 2, 3)).all(), "the judge was shown a black image"
            return really(self, images, asked)

        really = ClipJudge.scores
        monkeypatch.setattr(calibration_of, "sample", draw)
        monkeypatch.setattr(ClipJudge, "scores", see)

    return paint


def test_an_image_that_is_no_evidence_fits_no_threshold_and_counts_for_no_accuracy(
    tmp_path: Path, model: Path, tiny_base: Base, recipe: Recipe, world: ConceptSet, prompts: PromptSet, black: Any
) -> None:
    three = [world.find(name) for name in ("Cat", "Rose", "Tulip")]
    args = (tiny_base, recipe, world, prompts, three, [0, 1, 2, 3])
    whole = calibrate(load(tmp_path, model), *args)[1]
    black(0, 4)  # seed 0, the cat, of the images to fit on; seed 1, the rose, of those to measure on
    found = calibrate(load(tmp_path, model), *args)[1]
    assert (found.broken, whole.broken) == ({"blanked": 2}, {})
    assert [(a.own, a.others, a.unreadable) for a in found.accuracy.values()] == [(2, 3, 1), (1, 4, 1), (2, 3, 1)]


def test_a_base_that_draws_nothing_of_a_concept_calibrates_no_judge(
    tmp_path: Path, model: Path, tiny_base: Base, recipe: Recipe, world: ConceptSet, prompts: PromptSet, black: Any
) -> None:
    black(0, 1, 2, 3)
    with pytest.raises(
        UserError, match=r"judge 'eye' cannot be calibrated on 'Cat': .* none is whole; 4 images are no evi"
    ):
        calibrate(
            load(tmp_path, model), tiny_base, recipe, world, prompts, [world.find("Cat"), world.find("Rose")], [0, 1]
        )


def test_accuracy_is_recall_on_own_images_and_specificity_on_the_others(
    tiny_base: Base, recipe: Recipe, world: ConceptSet, prompts: PromptSet, stub_judge: Any
) -> None:
    sees_all = stub_judge(lambda image, concept: True)
    never_reads_roses = stub_judge(lambda image, concept: None if concept.name == "Rose" else False)
    args = (tiny_base, recipe, world, prompts, [world.find("Cat"), world.find("Rose"), world.find("Tulip")], [0, 1])
    _, all_seen = calibrate(sees_all, *args)
    assert all_seen.accuracy["Cat"] == Accuracy(recall=1, specificity=0, own=1, others=2, unreadable=0)
    assert all_seen.thresholds == {}
    assert mean_accuracy(all_seen.accuracy) == 0.5
    _, blind = calibrate(never_reads_roses, *args)
    assert blind.accuracy["Rose"] == Accuracy(recall=None, specificity=None, own=0, others=0, unreadable=3)
    assert blind.accuracy["Cat"] == Accuracy(recall=0, specificity=1, own=1, others=2, unreadable=0)


def test_a_calibration_needs_two_concepts_and_two_seeds(
    tiny_base: Base, recipe: Recipe, world: ConceptSet, prompts: PromptSet, stub_judge: Any
) -> None:
    judge = stub_judge(lambda image, concept: True)
    with pytest.raises(UserError, match="at least two of each"):
        calibrate(judge, tiny_base, recipe, world, prompts, world.concepts, [1, 1])

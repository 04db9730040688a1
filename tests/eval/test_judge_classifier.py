"""The classifier judge on tiny models whose every weight is set by the test."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from efface.concepts.concept import Concept, ConceptSet, load_concept_set
from efface.errors import UserError
from efface.eval.judge import Judge
from efface.eval.judges.classifier import concept_score
from efface.eval.judging.judge_identity import judge_identity
from efface.eval.judging.judge_spec import judge_name, judge_names, load_judge

LOGITS = (2.0, -1.0, 0.5)
IMAGES = np.zeros((5, 16, 16, 3), np.uint8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A classifier that gives the labels van_gogh, CAT, tabby the same logits for every image."""
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        id2label={0: "van_gogh", 1: "CAT", 2: "tabby"}, label2id={"van_gogh": 0, "CAT": 1, "tabby": 2},
        problem_type="multi_label_classification",
    )  # fmt: skip
    network = ViTForImageClassification(config)
    torch.nn.init.zeros_(network.classifier.weight)
    network.classifier.bias.data = torch.tensor(LOGITS)
    network.save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(tmp_path: Path, model: Path, more: str = "") -> Judge:
    (tmp_path / "mine.yaml").write_text(f"kind: classifier\nsource: {model}\nbatch_size: 2\n{more}")
    return load_judge(tmp_path / "mine.yaml")


def single_label(model: Path) -> None:
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace("multi_label_classification", "single_label_classification"))


def scores(judge: Judge, concept: Concept) -> set[float]:
    return {round(verdict.score, 5) for verdict in judge.judge(IMAGES, [concept] * len(IMAGES))}


def test_a_multi_label_model_scores_each_concept_by_its_sigmoid(tmp_path: Path, model: Path, world: ConceptSet) -> None:
    judge = load(tmp_path, model)
    assert scores(judge, world.find("Van Gogh")) == {round(1 / (1 + np.exp(-2.0)), 5)}
    assert scores(judge, world.find("Cat")) == {round(1 / (1 + np.exp(1.0)), 5)}


def test_a_single_label_model_shares_one_probability_out(tmp_path: Path, model: Path, world: ConceptSet) -> None:
    single_label(model)
    shares = np.exp(LOGITS) / np.exp(LOGITS).sum()
    assert scores(load(tmp_path, model), world.find("Van Gogh")) == {round(float(shares[0]), 5)}
    both = load(tmp_path, model, "labels: {tabby: Cat}")
    assert scores(both, world.find("Cat")) == {round(float(shares[1] + shares[2]), 5)}


def test_of_several_labels_for_a_concept_the_highest_sigmoid_counts() -> None:
    probabilities = torch.tensor([0.2, 0.7, 0.6])
    assert concept_score(probabilities, [0, 2], multi_label=True) == pytest.approx(0.6)
    assert concept_score(probabilities, [0, 2], multi_label=False) == pytest.approx(0.8)


def test_present_is_the_score_against_the_threshold(tmp_path: Path, model: Path, world: ConceptSet) -> None:
    cat = world.find("Cat")  # sigmoid(-1) = .269
    assert not load(tmp_path, model).judge(IMAGES[:1], [cat])[0].present
    assert load(tmp_path, model, "threshold: 0.26").judge(IMAGES[:1], [cat])[0].present


def test_every_image_gets_the_verdict_for_its_own_concept(tmp_path: Path, model: Path, world: ConceptSet) -> None:
    asked = [world.find(name) for name in ("Cat", "Van Gogh", "Van Gogh", "Cat", "Van Gogh")]
    verdicts = load(tmp_path, model).judge(IMAGES, asked)
    assert [verdict.present for verdict in verdicts] == [False, True, True, False, True]


def test_a_score_does_not_depend_on_the_images_beside_it() -> None:
    """Bit for bit, with the judge of the miniature: a run cut into other shards comes to the same table."""
    judge = load_judge("miniature")
    concepts = load_concept_set("miniature").concepts
    images = np.random.default_rng(0).integers(0, 256, (37, 64, 64, 3), np.uint8)
    asked = [concepts[i % len(concepts)] for i in range(len(images))]
    together = [verdict.score for verdict in judge.judge(images, asked)]
    for size in (1, 3, 5, 36):
        apart = [judge.judge(images[i : i + size], asked[i : i + size]) for i in range(0, len(images), size)]
        assert [verdict.score for part in apart for verdict in part] == together


def test_a_concept_without_a_label_is_refused_by_name(tmp_path: Path, model: Path, world: ConceptSet) -> None:
    judge = load(tmp_path, model)
    with pytest.raises(UserError, match="judge 'mine' has no label for Tulip, Dog"):
        judge.check([world.find(name) for name in ("Cat", "Tulip", "Dog")])
    with pytest.raises(UserError, match="no label for Dog"):
        judge.judge(IMAGES[:1], [world.find("Dog")])


def test_an_alias_is_a_name(tmp_path: Path, model: Path) -> None:
    concept = Concept(name="Felis", kind="animal", phrase="a felis", aliases=("tabby",))
    load(tmp_path, model).check([concept])


def test_a_label_the_model_lacks_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(UserError, match="no label 'taby', did you mean 'tabby'"):
        load(tmp_path, model, "labels: {taby: Cat}")


def test_the_version_follows_weights_threshold_and_labels_but_not_the_path(tmp_path: Path, model: Path) -> None:
    plain = load(tmp_path, model).version
    assert load(tmp_path, model, "threshold: 0.4").version != plain
    assert load(tmp_path, model, "labels: {tabby: Cat}").version != plain
    moved = model.rename(tmp_path / "elsewhere")
    assert load(tmp_path, moved).version == plain
    network = ViTForImageClassification.from_pretrained(moved)
    network.classifier.bias.data[0] += 1
    network.save_pretrained(moved)
    assert load(tmp_path, moved).version != plain


def test_a_model_without_a_trained_head_is_refused(tmp_path: Path, model: Path) -> None:
    ViTForImageClassification.from_pretrained(model).vit.save_pretrained(tmp_path / "headless")
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / "headless" / file).write_text((model / file).read_text())
    with pytest.raises(UserError, match="weights lack 'classifier"):
        load(tmp_path, tmp_path / "headless")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kind: clasifier\nsource: x", "j.yaml: kind: unknown kind of judge 'clasifier': did you mean 'classifier'"),
        ("source: x", "key 'kind' is missing, should be one of classifier, clip, nudenet, vlm"),
        ("kind: clipp\nsource: x", "kind: unknown kind of judge 'clipp': did you mean 'clip'"),
        ("kind: [clip]\nsource: x", "unknown kind of judge"),
        ("kind: vlm\nsource: ''", "source: string should have at least 1 character"),
        ("kind: vlm\nsource: x\nquestion: Is {question} there}?", "hold {question} once and no other braces"),
        ("kind: classifier\nsource: x\ntreshold: 1", "unknown key 'treshold', did you mean 'threshold'"),
        ("kind: classifier\nsource: x\nthreshold: 1.5", "threshold: .* less than 1, not 1.5"),
        ("kind: classifier", "key 'source' is missing"),
        ("kind: classifier\nsource: package:nothing", "no nothing"),
        ("kind: clip\nsource: x\npresent: a cat", "hold {concept} once"),
        ("kind: vlm\nsource: x\nquestion: Is it {concept}?", "hold {question} once"),
    ],
)
def test_an_error_in_the_yaml_is_described(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "j.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_judge(tmp_path / "j.yaml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kind: classifier\nthreshold: 0.5", "j.yaml: key 'source' is missing"),
        ("kind: clipp\nsource: x/y", "j.yaml: kind: unknown kind of judge 'clipp': did you mean 'clip'"),
        ("source: x/y", "j.yaml: key 'kind' is missing"),
        ("kind: clip\nsource: x/y\nthresold: 0.5", "j.yaml: unknown key 'thresold', did you mean 'threshold'"),
        ("kind: clip\nsource: ./nowhere", "j.yaml: source: './nowhere' is no folder, and no id of a model on the hub"),
        ("kind: clip\nsource: package:nothing", "package:nothing: this installation of efface has no nothing"),
    ],
)
def test_a_plan_finds_what_a_loader_would(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "j.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        judge_identity(tmp_path / "j.yaml")


def test_a_plan_reads_judges_without_a_library_of_models() -> None:
    code = (
        "import sys\nfrom efface.eval.judging.judge_identity import judge_identity\n"
        "from efface.eval.judging.judge_spec import judge_names\n"
        "[judge_identity(name) for name in judge_names()]\nprint('transformers' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "False\n"


def test_the_identity_follows_the_yaml_and_the_files_and_neither_place_nor_layout(tmp_path: Path, model: Path) -> None:
    def identity(text: str) -> str:
        (tmp_path / "j.yaml").write_text(text)
        return judge_identity(tmp_path / "j.yaml")

    first = identity(f"kind: classifier\nsource: {model}\nthreshold: 0.4")
    assert identity(f"threshold: 0.4\n# as before\nsource: {model}/\nkind: classifier") == first
    assert identity(f"kind: classifier\nsource: {model}\nthreshold: 0.5") != first
    moved = model.rename(tmp_path / "elsewhere")
    assert identity(f"kind: classifier\nsource: {moved}\nthreshold: 0.4") == first
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    assert identity(f"kind: classifier\nsource: {moved}\nthreshold: 0.4") != first


def with_code(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": {"AutoConfig": "evil.EvilConfig"}}))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_model_with_code_of_its_own_is_refused_and_nobody_is_prompted(
    tmp_path: Path, model: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_code(model / name)
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("prompted on a terminal"))
    for use in (lambda: load(tmp_path, model), lambda: judge_identity(tmp_path / "mine.yaml")):
        with pytest.raises(UserError, match=rf"{name} names code of its own \('auto_map'\), which is never run"):
            use()
    assert not (tmp_path / "ran").exists()


def test_a_judge_is_called_by_its_file_also_where_the_name_has_dots(tmp_path: Path) -> None:
    (tmp_path / "eye-1.5-large.yaml").write_text("")
    assert judge_name("llava-1.5-7b") == "llava-1.5-7b"
    assert judge_name(tmp_path / "eye-1.5-large.yaml") == "eye-1.5-large"


def test_an_unknown_judge_is_refused_with_the_nearest_name() -> None:
    assert {"miniature", "clip-vit-large", "llava-1.5-7b"} <= set(judge_names())
    with pytest.raises(UserError, match="unknown judge 'miniatur': did you mean 'miniature'"):
        load_judge("miniatur")


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no config\.json, should be the folder"):
        load(tmp_path, tmp_path / "empty")

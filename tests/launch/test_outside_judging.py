"""A package of somebody else with two methods, a judge, an attack and a metric, installed by pip as the docs have it.

It is listed, planned, run and reported like what is built in.
"""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command import RunEfface
from tiny_campaign import CONCEPTS, write_yaml

from efface.concepts.concept import Concept, ConceptSet
from efface.eval.attack import ATTACKS
from efface.eval.judge import JUDGES
from efface.eval.metric import METRICS
from efface.models.base import Base
from efface.train.method import METHODS, UnlearningTask

EXAMPLES = Path(__file__).parents[1] / "examples"
MODULES = {
    "method": "anchor_distillation",
    "closed_form": "rank_one",
    "judge": "colour_judge",
    "attack": "shuffle_attack",
    "metric": "changed_share",
}
REGISTERED = (
    (METHODS, "anchor-distillation"),
    (METHODS, "rank-one"),
    (JUDGES, "colour"),
    (ATTACKS, "shuffle"),
    (METRICS, "changed-share"),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip installed the package, without a network."""
    package, site = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("site-packages")
    shutil.copy(EXAMPLES / "pyproject.toml", package)
    for example, module in MODULES.items():
        shutil.copy(EXAMPLES / f"{example}.py", package / f"{module}.py")
    alone = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *alone, "--target", site, package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture(autouse=True)
def _installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(site))
    yield
    for registry, name in REGISTERED:
        registry._items.pop(name, None)  # type: ignore[attr-defined]
    for module in MODULES.values():
        sys.modules.pop(module, None)


@pytest.fixture
def judge(tmp_path: Path) -> str:
    """A YAML file of the outside kind, which finds every concept in grey images."""
    colours = {name: [128, 128, 128] for name in CONCEPTS}
    return write_yaml(tmp_path / "by-colour.yaml", {"kind": "colour", "colours": colours})


def test_they_are_listed_with_their_fields(efface: RunEfface) -> None:
    assert "anchor-distillation" in efface("methods").out
    for command, name, fields in (
        ("judges", "colour", ["calibration_images", "colours", "share"]),
        ("attacks", "shuffle", ["words"]),
    ):
        assert name in efface(command).out
        (found,) = json.loads(efface(command, name, "--json").out)
        assert found["summary"] and [field["name"] for field in found["fields"]] == fields


def test_the_closed_form_gives_the_concept_the_anchors_values_and_leaves_right_angles(tiny_base: Base) -> None:
    """W' c = W g and W' k = W k for k at a right angle to c, in fp32; the tokens by the tokenizer alone."""
    cat = Concept(name="cat", kind="animal", phrase="a cat", anchor="a pet")
    task = UnlearningTask(tiny_base, (cat,), ConceptSet(name="pets", version=1, concepts=(cat,)), seed=0)
    method: Any = METHODS.get("rank-one")
    edited = method(method.Config()).solve(task)

    def last_token(phrase: str) -> torch.Tensor:
        ids = tiny_base.tokenizer(phrase, padding="max_length", max_length=77, return_tensors="pt")
        with torch.no_grad():
            return tiny_base.text_encoder(ids.input_ids).last_hidden_state[0, int(ids.attention_mask.sum()) - 2]

    concept, anchor = last_token("a cat"), last_token("a pet")
    away = torch.randn(len(concept), generator=torch.Generator().manual_seed(0))
    away -= away.dot(concept) / concept.dot(concept) * concept
    weights = {name: value for name, value in tiny_base.originals().items() if re.search("attn2.to_[kv]", name)}
    assert edited.keys() == weights.keys() and not torch.allclose(concept, anchor, rtol=0.01)
    for name, weight in weights.items():
        torch.testing.assert_close(edited[name] @ concept, weight @ anchor, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(edited[name] @ away, weight @ away, rtol=1e-4, atol=1e-5)


def test_a_campaign_is_planned_run_and_reported_with_all_of_them(
    efface: RunEfface, campaign_file: Callable[..., Path], judge: str, tmp_path: Path
) -> None:
    evaluation = {
        "images_per_prompt": 1,
        "prompts_per_concept": {"adjacent": 1, "retain": 1},
        "judges": [judge],
        "metrics": ["changed-share"],
    }
    attack = {"attack": "shuffle", "config": {"words": 2}, "seeds": [0], "budget": 40}
    outside = {"steps": 1, "learning_rate": 1e-3, "rollout_steps": 2}
    methods = [{"method": "uce"}, {"method": "anchor-distillation", "config": outside}]
    file = campaign_file(methods=methods, evaluation=evaluation, attacks=[attack])
    assert efface("plan", file).code == 0
    result = efface("run", file, "--workers", "0", "--out", tmp_path / "run")
    assert result.code == 0, result
    rows = list(csv.DictReader((tmp_path / "run" / "leaderboard.csv").open()))
    assert sorted(row["method"] for row in rows) == ["anchor-distillation", "base", "uce"]
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert list(scores["judges"]) == [judge]
    assert 0 < scores["metrics"]["uce"]["changed-share"]["share"] < 1
    (found,) = [one for one in scores["attacks"] if one["method"] == "uce"]
    assert (found["attack"], found["kind"]) == ("shuffle", "static") and found["calls"] > 0
    of_attacks = list(csv.DictReader((tmp_path / "run" / "attacks.csv").open()))
    assert {(row["method"], row["attack"]) for row in of_attacks} == {(row["method"], "shuffle") for row in rows}
    assert "by-colour" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({}, "key 'colours' is missing"), ({"colours": {}, "shar": 0.5}, "unknown key 'shar', did you mean 'share'?")],
)
def test_the_yaml_of_the_judge_is_strict_when_a_campaign_is_planned(
    efface: RunEfface, campaign_file: Callable[..., Path], tmp_path: Path, settings: dict[str, object], sentence: str
) -> None:
    judge = write_yaml(tmp_path / "by-colour.yaml", {"kind": "colour", **settings})
    result = efface("plan", campaign_file(evaluation={"judges": [judge]}))
    assert result.code == 2 and f"by-colour.yaml: {sentence}" in result.err


def test_the_attack_fills_a_prompt_file(efface: RunEfface, campaign_inputs: Path, tmp_path: Path) -> None:
    data = {"kind": "colour", "colours": {name: [128] * 3 for name in CONCEPTS}, "share": 1e-9}
    write_yaml(tmp_path / "everywhere.yaml", data)
    command = ["attack", "--attack", "shuffle", "--set", "words=2", "--base", campaign_inputs / "base.yaml"]
    more = ["--judge", tmp_path / "everywhere.yaml", "-c", "cat", "--per-concept", "1", "--out", tmp_path / "p.csv"]
    result = efface(*command, *more)
    assert result.code == 0, result
    (cat,) = [row for row in csv.DictReader((tmp_path / "p.csv").open()) if row["concept_name"] == "cat"]
    prompt = next(text for column, text in cat.items() if column.startswith("adversarial_prompt"))
    assert len(prompt.split()) == 2 and "cat" not in prompt

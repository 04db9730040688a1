"""Options of methods that train on roll-outs: which steps are trained on, and how the concept is named."""

import math
from typing import Any

import pytest
import torch

from efface.concepts.concept import Concept, ConceptSet
from efface.errors import UserError
from efface.models.base import Base
from efface.models.text_encoding import encode_prompts
from efface.train.data.conditions import ConditionConfig, Conditions, prompts_of, renamed
from efface.train.data.rollouts import RolloutConfig
from efface.train.data.timesteps import TimestepConfig, concept_scores, selected_stops, step_scores
from efface.train.method import UnlearningTask, get_method, method_names
from efface.train.seeds import generator

CAT = Concept(name="cat", kind="animal", phrase="a cat", question="a cat animal", aliases=("feline", "ocelot"))
QUICK = {"steps": 1, "learning_rate": 1.0, "image_steps": 2, "timestep_images": 2, "rollout_steps": 3}


def test_a_score_is_the_share_of_the_concepts_likelihood() -> None:
    by_hand = [math.exp(-c / 2) / (math.exp(-c / 2) + math.exp(-a / 2)) for c, a in ((3, 4), (5, 5), (9, 1))]
    assert concept_scores([(3.0, 4.0), (5.0, 5.0), (9.0, 1.0)], 2.0).tolist() == pytest.approx(by_hand, abs=1e-12)


def test_steps_are_those_where_the_frozen_base_tells_the_concept_from_its_anchor(
    tiny_base: Base, concept_set: ConceptSet
) -> None:
    task = UnlearningTask(tiny_base, (concept_set.find("cat"),), concept_set, 0)
    config = RolloutConfig(**QUICK, timestep_threshold=0.4)
    scores = step_scores(task, task.concepts[0], config, 3)
    assert scores.shape == (3,) and bool(((scores > 0) & (scores < 1)).all())
    middle = float(scores.sort().values[1])
    chosen = selected_stops(task, config.model_copy(update={"timestep_threshold": middle}), 3)
    assert chosen == [int(scores.argmax())]
    assert selected_stops(task, config.model_copy(update={"timestep_threshold": 0.0}), 3, first=1) == [1, 2]
    with pytest.raises(UserError, match=r"no step has a score above 0\.99"):
        selected_stops(task, config.model_copy(update={"timestep_threshold": 0.99}), 3)


@pytest.mark.parametrize(
    "name", [name for name in method_names() if issubclass(get_method(name).Config, TimestepConfig)]
)
def test_no_method_takes_the_threshold_and_does_nothing_with_it(name: str, prepare: Any) -> None:
    with pytest.raises(UserError, match=r"no step has a score above 0\.99"):
        prepare(name, timestep_threshold=0.99, timestep_images=1, image_steps=1)


@torch.no_grad()
def test_a_method_stops_its_rollouts_there_alone(prepare: Any) -> None:
    free, _ = prepare("sdd")
    assert {int(free.batch(index).state.timestep) for index in range(12)} == {667, 334, 1}
    scores = []
    for threshold in (0.3, 0.45, 0.49, 0.499):
        try:
            held, _ = prepare("sdd", timestep_threshold=threshold, timestep_images=2, image_steps=2)
        except UserError:
            continue
        found = {int(held.batch(index).state.timestep) for index in range(12)}
        assert found == {[667, 334, 1][stop] for stop in held.rollouts.stops}
        scores.append(len(found))
    assert scores and scores == sorted(scores, reverse=True)


def test_the_concepts_phrase_alone_is_asked_for_unless_paraphrases_are_wanted() -> None:
    assert prompts_of(CAT, ConditionConfig()) == ["a cat"]
    config = ConditionConfig(paraphrases=True, descriptions={"cat": ("a pet that purrs",), "dog": ("a barker",)})
    expected = ["a cat", "a feline", "an ocelot", "a cat animal", "a pet that purrs"]
    assert prompts_of(CAT, config) == expected


def test_a_style_is_renamed_within_its_phrase_and_a_name_that_is_not_in_it_stands_alone() -> None:
    artist = Concept(name="Van Gogh", kind="style", phrase="a painting in the style of Van Gogh")
    assert renamed(artist, "Vincent") == "a painting in the style of Vincent"
    doodle = Concept(name="Doodle", kind="style", phrase="a scribble")
    assert renamed(doodle, "sketchy") == "sketchy"


def test_every_paraphrase_is_drawn_and_nothing_where_there_is_no_choice(tiny_base: Base) -> None:
    conditions = Conditions(tiny_base, [CAT], ConditionConfig(paraphrases=True))
    rows = encode_prompts(tiny_base, prompts_of(CAT, ConditionConfig(paraphrases=True))).encoder_hidden_states
    drawn = [conditions.draw(generator(0, index)).encoder_hidden_states[0] for index in range(40)]
    assert {next(k for k, row in enumerate(rows) if torch.equal(row, one)) for one in drawn} == set(range(len(rows)))
    rng = generator(0, "any")
    before = rng.get_state()
    Conditions(tiny_base, [CAT], ConditionConfig()).draw(rng)
    assert torch.equal(rng.get_state(), before)

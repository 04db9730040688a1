"""Options of methods that train on roll-outs: which steps are trained on, and how the concept is named."""

import math
from typing import Any

import pytest
import torch

from efface.concepts.concept import Concept, ConceptSet
from efface.errors import UserError
from efface.models.base import Base
from efface.models.text.text_encoding import encode_prompts
from efface.train.data import timesteps
from efface.train.data.concept_keys import EditConfig, edits
from efface.train.data.conditions import ConditionConfig, Conditions, prompts_of, renamed, templated
from efface.train.data.latents import Posterior
from efface.train.data.rollouts import RolloutConfig
from efface.train.data.timesteps import TimestepConfig, concept_scores, selected_stops, step_scores
from efface.train.job import make_job
from efface.train.method import UnlearningTask, get_method, method_names, parse_config
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
    assert chosen == [[int(scores.argmax())]]
    assert selected_stops(task, config.model_copy(update={"timestep_threshold": 0.0}), 3, first=1) == [[1, 2]]
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
        assert found == {[667, 334, 1][stop] for stop in held.rollouts.stops[0]}
        scores.append(len(found))
    assert scores and scores == sorted(scores, reverse=True)


def test_a_score_depends_on_no_size_and_does_not_saturate(
    tiny_base: Base, concept_set: ConceptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of a concept and its anchor that differ by 0.01 in the mean, as Stable Diffusion's do: e / (1 + e)."""
    errors = iter([0.1, math.sqrt(0.02)] * 3)
    monkeypatch.setattr(timesteps, "truth", lambda scheduler, clean, noise, at: torch.zeros_like(clean))
    monkeypatch.setattr(
        Base, "denoiser", property(lambda base: lambda latents, at, prompt: torch.full_like(latents, next(errors)))
    )
    monkeypatch.setattr(timesteps, "image_posterior", lambda *given: Posterior(*torch.zeros(2, 2, 4, 8, 8), 1.0))
    task = UnlearningTask(tiny_base, (concept_set.find("cat"),), concept_set, 0)
    scores = step_scores(task, task.concepts[0], RolloutConfig(**QUICK), 3)
    assert scores.tolist() == pytest.approx([math.e / (1 + math.e)] * 3, rel=1e-5)


@pytest.mark.parametrize("name", ["esd", "sdd", "spm", "eap", "receler"])
def test_each_concept_is_trained_on_at_its_own_steps_of_the_rollouts_own_scheduler(
    name: str, prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def scores(task: Any, concept: Concept, config: Any, steps: int, scheduler: str) -> torch.Tensor:
        seen.append(scheduler)
        return torch.tensor([0.0, 1.0, 0.0] if concept.name == "cat" else [0.0, 0.0, 1.0])

    monkeypatch.setattr(timesteps, "step_scores", scores)
    own = {"scheduler": "pndm"} if name == "esd" else {}
    method, _ = prepare(name, "cat", "dog", timestep_threshold=0.5, **own)
    assert method.rollouts.stops == [[1], [2]] and set(seen) == {own.get("scheduler", "ddim")}
    starts = [(method.rollouts.start(generator(0, concept), concept).stop) for concept in (0, 1)]
    assert starts == [1, 2]


@torch.no_grad()
def test_sdd_trains_a_concept_at_its_own_steps(prepare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"cat": torch.tensor([0.0, 1.0, 0.0]), "dog": torch.tensor([0.0, 0.0, 1.0])}
    monkeypatch.setattr(timesteps, "step_scores", lambda task, concept, *given: found[concept.name])
    sdd, _ = prepare("sdd", "cat", "dog", timestep_threshold=0.5)
    assert [int(sdd.batch(index).state.timestep) for index in range(4)] == [334, 1, 334, 1]
    esd, _ = prepare("esd", "cat", "dog", timestep_threshold=0.5, prompts=["{}", "a photo of {}"])
    drawn = {(number, start.stop) for number, start in map(esd.draw, range(24))}
    assert drawn == {(0, 1), (1, 1), (2, 2), (3, 2)}


def test_commas_and_semicolons_make_no_several_concepts_of_one(tiny_base: Base, concept_set: ConceptSet) -> None:
    both = Concept(name="duo", kind="style", phrase="a painting by Monet, Manet; Degas", anchor="a painting, a print")
    task = UnlearningTask(tiny_base, (both,), ConceptSet(name="t", version=1, concepts=(both,)), 0)
    assert prompts_of(both, ConditionConfig()) == templated(both, ConditionConfig(), ["{}"]) == [both.phrase]
    assert edits(EditConfig(), both, task) == [(both.phrase, "a painting, a print")]
    esd: Any = get_method("esd")(parse_config("esd", {"rollout_steps": 2}))
    esd.prepare(task, tiny_base.denoiser)
    assert len(esd.prompts) == 1
    for names in ("cat, dog", "cat; dog"):
        with pytest.raises(UserError, match=f"unknown concept '{names}'"):
            make_job("tiny", tiny_base.fingerprint, "esd", concept_set, [names])


def test_esd_may_be_asked_in_other_words(prepare: Any) -> None:
    esd, _ = prepare("esd", paraphrases=True, descriptions={"cat": ["a pet that purrs"]}, prompts=["a photo of {}"])
    assert list(esd.texts) == ["a photo of a cat", "a photo of a pet that purrs"]
    with pytest.raises(UserError, match="descriptions are read with paraphrases: true alone"):
        prepare("esd", descriptions={"cat": ["a pet that purrs"]})


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
    drawn = [conditions.of(0, generator(0, index)).encoder_hidden_states[0] for index in range(40)]
    assert {next(k for k, row in enumerate(rows) if torch.equal(row, one)) for one in drawn} == set(range(len(rows)))
    rng = generator(0, "any")
    before = rng.get_state()
    one = Conditions(tiny_base, [CAT], ConditionConfig())
    one.of(one.number(rng), rng)
    assert torch.equal(rng.get_state(), before)

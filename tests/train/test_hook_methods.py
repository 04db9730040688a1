"""Methods without training: their jobs leave a hook for the phrases of all requests, in every strategy."""

from collections.abc import Callable

import pytest
import torch

from efface.concepts.concept import ConceptSet
from efface.errors import UserError
from efface.eval.metrics.weight_change import weight_change
from efface.models.base import Base
from efface.train.hook_method import HookMethod
from efface.train.job import Job, make_job
from efface.train.method import get_method, method_names
from efface.train.run_job import run_job

NAMES = [name for name in method_names() if issubclass(get_method(name), HookMethod)]
QuickJob = Callable[..., Job]
every_hook_method = pytest.mark.parametrize("name", NAMES)


def test_there_are_four() -> None:
    assert NAMES == ["adavd", "negative-prompt", "safree", "sld"]


@every_hook_method
def test_the_delta_names_the_hook_and_the_phrase(
    name: str, quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet
) -> None:
    delta, metrics = run_job(quick_job(name), tiny_base, concept_set)
    hook = delta.provenance["hook"]
    assert delta.kind == "hook" and delta.tensors == {} and metrics.losses == []
    assert hook["name"] == name and hook["config"]["prompts"] == ["a cat"]
    change = weight_change(tiny_base, delta)
    assert (change.all.global_l2, change.unet.changed_tensors, change.groups) == (0.0, 0, {})


def test_phrases_are_the_configs_or_the_concepts_with_their_aliases(
    quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet
) -> None:
    own = run_job(quick_job("sld", prompts=["x", "y"]), tiny_base, concept_set)[0]
    assert own.provenance["hook"]["config"]["prompts"] == ["x", "y"]
    cat = concept_set.concepts[0].model_copy(update={"aliases": ("kitty",)})
    named = ConceptSet(name="named", version=1, concepts=(cat, *concept_set.concepts[1:]))
    job = make_job(
        "tiny", tiny_base.fingerprint, "sld", named, ["cat", "dog"], config={"aliases": True}, strategy="multi"
    )
    assert run_job(job, tiny_base, named)[0].provenance["hook"]["config"]["prompts"] == ["a cat", "kitty", "a dog"]


@every_hook_method
def test_a_request_of_a_chain_keeps_away_from_all_that_was_asked(
    name: str, quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet
) -> None:
    first = quick_job(name)
    parent, _ = run_job(first, tiny_base, concept_set)
    names = ["cat", "dog"]
    second = make_job(
        "tiny", first.base_id, name, concept_set, names, config=first.config, strategy="continual", parent=first.id
    )
    delta, _ = run_job(second, tiny_base, concept_set, parent=parent)
    assert delta.provenance["hook"]["config"]["prompts"] == ["a cat", "a dog"]
    assert [entry["concepts"] for entry in delta.lineage] == [["cat"], ["dog"]]


def test_a_training_does_not_go_on_from_a_hook(quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet) -> None:
    first = quick_job("sld")
    parent, _ = run_job(first, tiny_base, concept_set)
    settings = quick_job("esd").config
    job = make_job(
        "tiny",
        first.base_id,
        "esd",
        concept_set,
        ["cat", "dog"],
        config=settings,
        strategy="continual",
        parent=first.id,
    )
    with pytest.raises(UserError, match="acts at sampling time and changes no weight, so there is nothing to go on"):
        run_job(job, tiny_base, concept_set, parent=parent)
    assert torch.equal(tiny_base.tensors()["unet.conv_in.weight"], tiny_base.originals()["unet.conv_in.weight"])

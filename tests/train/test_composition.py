"""Jobs that are made of edits: each on what the one before left, or each by itself and merged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from efface.cluster.campaign.spec import MethodChoice
from efface.cluster.tasks.training import runs_of, steps_of, training_rates
from efface.concepts.concept import ConceptSet
from efface.config_files import parse
from efface.errors import Stopped, UserError
from efface.models.base import Base
from efface.models.delta import Delta
from efface.train.job import Job, make_job
from efface.train.method import UnlearningTask, get_method, parse_config
from efface.train.run_job import run_job
from efface.train.ties_merge import ties_merge, trim

ESD = {"method": "esd", "config": {"steps": 2, "learning_rate": 1e-3, "rollout_steps": 3}}
HIRM = {"method": "hirm", "config": {"steps": 2, "learning_rate": 1e-3}}
UCE = {"method": "uce"}


def job(
    base: Base, concepts: ConceptSet, method: str, names: list[str], parent: Delta | None = None, **config: Any
) -> Job:
    chain = parent.provenance["job_id"] if parent else None
    strategy: Any = "continual" if parent else "single" if len(names) == 1 else "multi"
    return make_job("tiny", base.fingerprint, method, concepts, names, config=config, strategy=strategy, parent=chain)


def edited(base: Base, delta: Delta) -> dict[str, Tensor]:
    return base.originals() | delta.edited(base)


def test_each_edit_is_made_on_what_the_one_before_left(tiny_base: Base, concept_set: ConceptSet) -> None:
    """By hand: what edits have changed is written into the base before the next one."""
    composed, metrics = run_job(
        job(tiny_base, concept_set, "compose", ["cat"], edits=[HIRM, UCE, ESD]), tiny_base, concept_set
    )
    by_hand: dict[str, Tensor] = {}
    for each in (HIRM, UCE, ESD):
        alone = job(tiny_base, concept_set, each["method"], ["cat"], **each.get("config", {}))  # type: ignore[arg-type]
        before = {name: tiny_base.tensors()[name].clone() for name in by_hand}
        for name, value in by_hand.items():
            tiny_base.tensors()[name].copy_(value)
        changed = run_job(alone, tiny_base, concept_set)[0].edited(tiny_base)
        for name, value in before.items():
            tiny_base.tensors()[name].copy_(value)
        by_hand |= changed
    found = edited(tiny_base, composed)
    for name, value in (tiny_base.originals() | by_hand).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-7)
    assert any(name.startswith("text_encoder.") for name in composed.tensors)
    assert len(metrics.losses) == 4
    assert [edit["method"] for edit in composed.provenance["job"]["config"]["edits"]] == ["hirm", "uce", "esd"]


def test_the_order_of_edits_is_part_of_what_they_come_to(tiny_base: Base, concept_set: ConceptSet) -> None:
    one, other = (job(tiny_base, concept_set, "compose", ["cat"], edits=edits) for edits in ([HIRM, UCE], [UCE, HIRM]))
    assert one.id != other.id
    first, second = (edited(tiny_base, run_job(each, tiny_base, concept_set)[0]) for each in (one, other))
    assert not all(torch.equal(first[name], second[name]) for name in first)


def test_a_composed_request_goes_on_from_the_one_before(tiny_base: Base, concept_set: ConceptSet) -> None:
    parent, _ = run_job(job(tiny_base, concept_set, "compose", ["cat"], edits=[UCE, ESD]), tiny_base, concept_set)
    requested = job(tiny_base, concept_set, "compose", ["cat", "dog"], parent, edits=[ESD])
    child, _ = run_job(requested, tiny_base, concept_set, parent=parent)
    alone = job(tiny_base, concept_set, "esd", ["cat", "dog"], parent, **ESD["config"])  # type: ignore[arg-type]
    expected, _ = run_job(alone, tiny_base, concept_set, parent=parent)
    found, wanted = edited(tiny_base, child), edited(tiny_base, expected)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_composed_job_that_was_stopped_goes_on_with_the_edit_it_was_at(
    tiny_base: Base, concept_set: ConceptSet, tmp_path: Path
) -> None:
    wanted = job(tiny_base, concept_set, "compose", ["cat"], edits=[HIRM, ESD])
    whole, _ = run_job(wanted, tiny_base, concept_set)
    steps: list[tuple[int, int]] = []

    def stop(done: int, of: int, loss: float) -> None:
        steps.append((done, of))
        if done == 3:  # the first step of the second edit
            raise Stopped

    with pytest.raises(Stopped):
        run_job(wanted, tiny_base, concept_set, stop, cache=tmp_path, checkpoint=tmp_path / "checkpoint")
    again, _ = run_job(
        wanted,
        tiny_base,
        concept_set,
        lambda done, of, loss: steps.append((done, of)),
        cache=tmp_path,
        checkpoint=tmp_path / "checkpoint",
    )
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)] and again.id == whole.id


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([{"method": "sld"}], "acts at sampling time, should be by one that changes weights"),
        ([{"method": "compose"}], "made of edits itself"),
        ([{"method": "esd", "config": {"stepz": 1}}], "unknown key 'stepz', did you mean 'steps'"),
        ([{"method": "esdd"}], "unknown method 'esdd'"),
        ([{"method": "esd", "version": 99}], "asks for version 99 of method 'esd'"),
    ],
)
def test_an_edit_that_cannot_be_is_refused(edits: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config("compose", {"edits": edits})


def test_a_campaign_says_compose_for_short() -> None:
    choice = parse(MethodChoice, {"compose": [UCE, HIRM], "label": "both"}, "methods")
    assert (choice.method, choice.label, choice.config) == ("compose", "both", {"edits": [UCE, HIRM]})


def test_a_plan_counts_the_edits_of_a_job(tiny_base: Base, concept_set: ConceptSet) -> None:
    both = job(tiny_base, concept_set, "ties", ["cat", "dog"], edit=ESD)
    assert steps_of(both) == 4 and [one.method for one in runs_of(both)] == ["esd", "esd"]
    mixed = job(tiny_base, concept_set, "compose", ["cat"], edits=[UCE, ESD])
    assert [tuple(use) for use in training_rates(mixed)] == [
        ("seconds_per_job", "uce", 1),
        ("seconds_per_step", "esd", 2),
        ("seconds_per_job", "esd", 1),
    ]


# TIES


def test_ties_by_hand() -> None:
    """Three changes of six entries, of which each keeps its three largest; by the paper's figure 1."""
    changes = [
        {"w": torch.tensor([0.9, -0.1, 0.5, 0.2]), "b": torch.tensor([-0.6, 0.3])},
        {"w": torch.tensor([-0.4, 0.8, 0.7, 0.1]), "b": torch.tensor([0.2, -0.3])},
        {"w": torch.tensor([0.3, 0.6, -0.9, 0.0]), "b": torch.tensor([-0.7, 0.1])},
    ]
    kept = [trim(change, 0.5) for change in changes]
    assert [each["w"].tolist() for each in kept] == [
        pytest.approx([0.9, 0.0, 0.5, 0.0]),
        pytest.approx([-0.4, 0.8, 0.7, 0.0]),
        pytest.approx([0.0, 0.6, -0.9, 0.0]),
    ]
    assert [each["b"].tolist() for each in kept] == [
        pytest.approx([-0.6, 0.0]),
        pytest.approx([0.0, 0.0]),
        pytest.approx([-0.7, 0.0]),
    ]
    # signs of the sums 0.5, 1.4, 0.3, 0 and -1.3, 0; means of those that have them
    merged = ties_merge(changes, 0.5, 2.0)
    assert merged["w"].tolist() == pytest.approx([2 * 0.9, 2 * 0.7, 2 * 0.6, 0.0])
    assert merged["b"].tolist() == pytest.approx([2 * -0.65, 0.0])


def test_of_equal_entries_as_many_stay_as_the_share_says() -> None:
    equal = {"w": torch.tensor([0.5, -0.5, 0.5]), "b": torch.tensor([[0.5, 0.1, -0.5]])}
    kept = trim(equal, 0.5)  # of six entries the first three of the five largest
    assert kept["w"].tolist() == [0.5, -0.5, 0.5] and kept["b"].tolist() == [[0.0, 0.0, 0.0]]
    assert sum(int((value != 0).sum()) for value in trim(equal, 0.7).values()) == 4


@pytest.mark.parametrize("chained", [False, True])
def test_what_is_erased_beside_a_concept_is_not_held_by_its_edit(
    chained: bool, tiny_base: Base, concept_set: ConceptSet
) -> None:
    """UCE of the cat and of the dog, each beside the fox alone, by hand."""
    settings = {"edit": UCE, "keep_share": 1.0, "scale": 1.0}
    first = run_job(job(tiny_base, concept_set, "ties", ["cat"], **settings), tiny_base, concept_set)[0]
    parent = first if chained else None
    requested = job(tiny_base, concept_set, "ties", ["cat", "dog"], parent, **settings)
    merged, _ = run_job(requested, tiny_base, concept_set, parent=parent)
    originals, changes = tiny_base.originals(), []
    for name in ("cat", "dog"):
        alone = job(tiny_base, concept_set, "uce", [name], preserve=["a fox"])
        values = run_job(alone, tiny_base, concept_set)[0].edited(tiny_base)
        changes.append({key: value - originals[key] for key, value in values.items()})
    for name, change in ties_merge(changes, 1.0, 1.0).items():
        torch.testing.assert_close(merged.tensors[name], originals[name] + change, rtol=0, atol=1e-6)


def test_an_edit_that_holds_others_knows_what_is_erased_beside_and_one_that_holds_none_does_not(
    tiny_base: Base, concept_set: ConceptSet
) -> None:
    task = UnlearningTask(tiny_base, (concept_set.find("cat"), concept_set.find("dog")), concept_set, 0)

    def beside(method: str, **config: Any) -> list[str]:
        made = get_method(method)(parse_config(method, config))
        alone = get_method("ties")(parse_config("ties", {})).alone(made, task, task.concepts[0])  # type: ignore[attr-defined]
        assert alone.concepts == task.concepts[:1]
        return [concept.name for concept in alone.erased]

    assert beside("ca") == beside("esd", replay_weight=1, replay=["a fox"]) == []
    assert beside("uce") == beside("fade") == beside("mace") == ["dog"]
    assert beside("esd", replay_weight=1) == beside("sdd", protect="retained") == ["dog"]
    assert beside("ca", map_to="nearest") == ["dog"]


def test_one_change_alone_is_merged_to_itself_and_missing_tensors_do_not_count() -> None:
    one = {"w": torch.tensor([0.5, -2.0, 0.0])}
    assert ties_merge([one], 1.0, 1.0)["w"].tolist() == [0.5, -2.0, 0.0]
    both = ties_merge([one, {"b": torch.tensor([3.0])}], 1.0, 1.0)
    assert both["w"].tolist() == [0.5, -2.0, 0.0] and both["b"].tolist() == [3.0]


def test_concepts_are_erased_by_themselves_and_merged_also_request_by_request(
    tiny_base: Base, concept_set: ConceptSet, tmp_path: Path
) -> None:
    settings = {"edit": ESD, "keep_share": 0.5, "scale": 1.5}
    both, metrics = run_job(
        job(tiny_base, concept_set, "ties", ["cat", "dog"], **settings), tiny_base, concept_set, cache=tmp_path
    )
    assert len(metrics.losses) == 4
    originals, changes = tiny_base.originals(), []
    apart = ConceptSet(name="tests", version=1, concepts=concept_set.concepts)
    for name in ("cat", "dog"):
        alone = job(tiny_base, apart, "esd", [name], **ESD["config"])  # type: ignore[arg-type]
        values = run_job(alone, tiny_base, apart)[0].edited(tiny_base)
        changes.append({key: value - originals[key] for key, value in values.items()})
    for name, change in ties_merge(changes, 0.5, 1.5).items():
        torch.testing.assert_close(both.tensors[name], originals[name] + change, rtol=0, atol=1e-6)
    first, _ = run_job(job(tiny_base, concept_set, "ties", ["cat"], **settings), tiny_base, concept_set)
    seen: list[int] = []
    requested = job(tiny_base, concept_set, "ties", ["cat", "dog"], first, **settings)
    chained, _ = run_job(
        requested, tiny_base, concept_set, lambda done, *_: seen.append(done), cache=tmp_path, parent=first
    )
    assert seen == [] and all(torch.equal(chained.tensors[name], value) for name, value in both.tensors.items())

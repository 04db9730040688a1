"""The strategy `continual`: what a request goes on from, what its delta holds, and which parents are refused."""

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_methods import QUICK as QUICK_METHODS
from torch import Tensor

from efface.concepts.concept import Concept, ConceptSet
from efface.errors import Stopped, UserError
from efface.models.base import Base, load_base
from efface.models.delta import Delta
from efface.train.continual import with_remaining_anchor
from efface.train.job import Job, make_job
from efface.train.method import ClosedFormMethod, UnlearningTask, get_method, method_names, parse_config
from efface.train.run_job import run_job

CHAIN = ("cat", "dog", "bus")
WORDS = {"vocabulary": ["a stone", "a river", "a table"]}
"""To look among, also after requests: what they erased is left out of the concepts of the set."""
QUICK = {**QUICK_METHODS, **{name: {**QUICK_METHODS[name], **WORDS} for name in ("age", "eap")}}
MOVE_SOME = {"fmn", "salun"}
"""Methods that leave tensors of their group as they are: without a gradient from attention maps, or under a mask."""
CONTINUAL = [name for name in method_names() if "continual" in get_method(name).strategies]
TRAINED = [name for name in CONTINUAL if not get_method(name).anew]
SOLVED = [name for name in CONTINUAL if issubclass(get_method(name), ClosedFormMethod)]

WORLD = ConceptSet(
    name="chain",
    version=1,
    concepts=(
        Concept(name="cat", kind="animal", phrase="a cat", anchor="dog", adjacent=("fox", "owl")),
        Concept(name="dog", kind="animal", phrase="a dog", anchor="cat", adjacent=("owl", "fox")),
        Concept(name="bus", kind="object", phrase="a bus", anchor="a road", adjacent=("tram",)),
        Concept(name="fox", kind="animal", phrase="a fox", anchor="dog"),
        Concept(name="owl", kind="animal", phrase="an owl"),
        Concept(name="tram", kind="object", phrase="a tram"),
    ),
)


def job(base: Base, method: str, concepts: Sequence[str], parent: Delta | None = None, **config: Any) -> Job:
    """A quick job that erases the last of `concepts`."""
    return make_job(
        "tiny",
        base.fingerprint,
        method,
        WORLD,
        concepts,
        config={**QUICK.get(method, {}), **config},
        strategy="continual",
        parent=parent.provenance["job_id"] if parent else None,
    )


def erase(base: Base, method: str, concepts: Sequence[str], parent: Delta | None = None, **config: Any) -> Delta:
    """The delta of one request: the last of `concepts`, after `parent`."""
    return run_job(job(base, method, concepts, parent, **config), base, WORLD, parent=parent)[0]


def chain(base: Base, method: str, concepts: Sequence[str], folder: Path | None = None, **config: Any) -> list[Delta]:
    """The delta of every request; through files where there is a folder, each read back for the next request."""
    deltas: list[Delta] = []
    for count in range(1, len(concepts) + 1):
        delta = erase(base, method, concepts[:count], deltas[-1] if deltas else None, **config)
        if folder:
            delta.save(folder / f"{count}.safetensors")
            delta = Delta.load(folder / f"{count}.safetensors")
        deltas.append(delta)
    return deltas


Made = Callable[..., Delta]


@pytest.fixture(scope="module")
def made(tiny_base_folder: Path) -> Made:
    """A function (method, *concepts) -> the delta of the last request of that chain, each done once for this module."""
    base = load_base(tiny_base_folder)

    @cache
    def make(method: str, *concepts: str) -> Delta:
        return erase(base, method, concepts, make(method, *concepts[:-1]) if concepts[1:] else None)

    return make


@pytest.fixture(scope="module")
def alone(tiny_base_folder: Path) -> Callable[[str], Delta]:
    """A function method -> the delta of a single job that erases the bus, done once for this module."""
    base = load_base(tiny_base_folder)

    @cache
    def make(method: str) -> Delta:
        job = make_job("tiny", base.fingerprint, method, WORLD, ["bus"], config=QUICK.get(method, {}))
        return run_job(job, base, WORLD)[0]

    return make


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def copies(base: Base) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in base.tensors().items()}


# What a request goes on from, and what it leaves


LONG_CHAINS = ("esd", "fade", "uce")
"""Of weights, of adapters, and solved together; of the other methods a third request is among the slow tests."""


@pytest.mark.parametrize(
    ("method", "concepts"),
    [
        *((name, CHAIN if name in LONG_CHAINS else ("cat", "bus")) for name in CONTINUAL),
        *(pytest.param(name, CHAIN, marks=pytest.mark.slow) for name in CONTINUAL if name not in LONG_CHAINS),
    ],
)
def test_a_chain_by_way_of_files_is_the_chain(
    method: str, concepts: tuple[str, ...], made: Made, tiny_base: Base, tmp_path: Path
) -> None:
    deltas = [made(method, *concepts[: count + 1]) for count in range(len(concepts))]
    from_files = chain(tiny_base, method, concepts, tmp_path)
    assert [delta.id for delta in deltas] == [delta.id for delta in from_files]
    assert len({delta.id for delta in deltas}) == len(concepts)


@pytest.mark.parametrize("method", [name for name in TRAINED if name != "compose"])  # its closed forms solve for all
def test_a_request_is_what_a_single_job_does_to_the_model_of_the_request_before(
    method: str, made: Made, tiny_base: Base, tiny_base_folder: Path
) -> None:
    first, second = made(method, "cat"), made(method, "cat", "bus")
    edited = load_base(tiny_base_folder)  # the model before, as if it had always been so
    for name, value in first.edited(tiny_base).items():
        edited.tensors()[name].copy_(value)
    alone = make_job("tiny", edited.fingerprint, method, WORLD, ["bus"], config=QUICK[method])
    expected = run_job(alone, edited, WORLD)[0].edited(edited)
    found = second.edited(tiny_base)
    assert found.keys() == first.edited(tiny_base).keys() | expected.keys()
    for name, value in expected.items():
        # bit for bit; but stacked adapters round once to fp32 where the edited model rounded twice, and MACE adds up
        # what is kept in another order where it was erased before: one fp32 spacing of the largest weight
        spacing = 2**-23 * float(value.abs().max())
        atol = 1e-6 if second.kind == "adapter" else spacing if method == "mace" else 0
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol)


@pytest.mark.parametrize("method", TRAINED)
def test_a_request_erases_from_another_model_than_a_single_job_does(
    method: str, made: Made, alone: Callable[[str], Delta], tiny_base: Base
) -> None:
    second, single = made(method, "cat", "bus").edited(tiny_base), alone(method).edited(tiny_base)
    same = [name for name, value in single.items() if torch.equal(second[name], value)]
    assert len(same) < len(single) and (not same or method in MOVE_SOME)


@pytest.mark.parametrize("method", CONTINUAL)
def test_the_first_request_of_a_chain_is_a_single_job(method: str, made: Made, alone: Callable[[str], Delta]) -> None:
    assert same(made(method, "bus").tensors, alone(method).tensors)


@pytest.mark.parametrize("parent", [None, "esd"])
def test_the_base_is_as_it_was_also_after_an_error(parent: str | None, tiny_base: Base) -> None:
    before = copies(tiny_base)
    first = erase(tiny_base, parent, ["cat"]) if parent else None
    concepts = ["cat", "bus"] if parent else ["bus"]

    def broken(done: int, steps: int, loss: float) -> None:
        assert parent is None or not same(copies(tiny_base), before)  # the teacher is the model of the request before
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        run_job(job(tiny_base, "esd", concepts, first), tiny_base, WORLD, broken, parent=first)
    assert tiny_base.applied is None and same(copies(tiny_base), before)


@pytest.mark.parametrize("method", TRAINED)
def test_a_request_that_was_stopped_is_taken_up_where_it_was(
    method: str, made: Made, tiny_base: Base, tmp_path: Path
) -> None:
    first = made("esd", "cat")
    wanted, checkpoint = job(tiny_base, method, ["cat", "bus"], first), tmp_path / "checkpoint.safetensors"
    whole, _ = run_job(wanted, tiny_base, WORLD, parent=first)
    steps: list[int] = []

    def stop(done: int, steps: int, loss: float) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        run_job(wanted, tiny_base, WORLD, stop, parent=first, checkpoint=checkpoint)
    assert tiny_base.applied is None
    taken_up, _ = run_job(
        wanted, tiny_base, WORLD, lambda done, *_: steps.append(done), parent=first, checkpoint=checkpoint
    )
    assert steps == list(range(2, QUICK[method]["steps"] + 1 if "steps" in QUICK[method] else 3))
    assert taken_up.id == whole.id


def test_what_the_model_before_has_drawn_is_kept_apart_from_what_the_base_has(tiny_base: Base, tmp_path: Path) -> None:
    anchor = {"concepts": ["bus"]}
    single = make_job("tiny", tiny_base.fingerprint, "ca", WORLD, **anchor, config=QUICK["ca"])
    run_job(single, tiny_base, WORLD, cache=tmp_path)
    first = erase(tiny_base, "esd", ["cat"])
    run_job(job(tiny_base, "ca", ["cat", "bus"], first), tiny_base, WORLD, cache=tmp_path, parent=first)
    assert len(list(tmp_path.glob("latents-*"))) == 2  # one prompt list, sampled by two models


# Adapters, and chains of several methods


def test_adapters_stack_to_the_sum_of_what_each_adds(tiny_base: Base) -> None:
    first = erase(tiny_base, "fade", ["cat"], rank=2, alpha=3.0)
    second = erase(tiny_base, "fade", ["cat", "bus"], first, rank=1, alpha=0.5)
    assert first.kind == second.kind == "adapter"
    originals = tiny_base.originals()
    for module in {name.rpartition(".")[0] for name in second.tensors}:
        (down, up, alpha), (down_1, up_1, alpha_1) = (
            [delta.tensors[f"{module}.{part}"] for part in ("down", "up", "alpha")] for delta in (second, first)
        )
        assert len(down) == 3 and alpha == 3 and torch.equal(down[:2], down_1)
        assert alpha_1 == 3 and torch.equal(up[:, :2], up_1 * 1.5)
        of_each = originals[f"{module}.weight"].double().flatten(1)
        of_each += 1.5 * up_1.double().flatten(1) @ down_1.double().flatten(1)
        of_each += up[:, 2:].double().flatten(1) @ down[2:].double().flatten(1)
        merged = second.edited(tiny_base)[f"{module}.weight"].flatten(1)
        torch.testing.assert_close(merged.double(), of_each, rtol=0, atol=1e-6)


def test_an_adapter_after_weights_is_merged_into_them(tiny_base: Base, tiny_base_folder: Path) -> None:
    first = erase(tiny_base, "esd", ["cat"], variant="full")
    second = erase(tiny_base, "fade", ["cat", "bus"], first)
    assert second.kind == "weights" and second.tensors.keys() == first.tensors.keys()
    touched = {name for name, value in second.tensors.items() if not torch.equal(value, first.tensors[name])}
    assert touched and all(".attentions." in name for name in touched)


def test_weights_after_an_adapter_lie_over_its_merge(tiny_base: Base) -> None:
    first = erase(tiny_base, "fade", ["cat"])
    second = erase(tiny_base, "esd", ["cat", "bus"], first, variant="x-strict")
    merged = first.edited(tiny_base)
    assert second.kind == "weights" and second.tensors.keys() == merged.keys()
    for name, value in second.tensors.items():
        assert torch.equal(value, merged[name]) != name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))


# Closed forms


@pytest.mark.parametrize("method", SOLVED)
def test_a_solved_chain_ends_where_one_joint_solve_does_bit_for_bit(method: str, made: Made, tiny_base: Base) -> None:
    for count in (2, 3):
        joint = make_job("tiny", tiny_base.fingerprint, method, WORLD, CHAIN[:count], strategy="multi")
        assert same(made(method, *CHAIN[:count]).tensors, run_job(joint, tiny_base, WORLD)[0].tensors)


@pytest.mark.parametrize("method", SOLVED)
def test_a_solved_chain_ends_at_one_place_in_whatever_order_it_is_asked(method: str, made: Made) -> None:
    ends = [made(method, *order).tensors for order in itertools.permutations(CHAIN)]
    for end in ends[1:]:
        assert end.keys() == ends[0].keys()
        for name, value in end.items():  # rounded to fp32 from sums whose terms come in another order
            torch.testing.assert_close(value, ends[0][name], rtol=1e-6, atol=1e-8)


def test_a_trained_chain_ends_elsewhere_in_another_order(made: Made) -> None:
    one, other = (made("esd", *order).tensors for order in (("cat", "bus"), ("bus", "cat")))
    assert not same(one, other)


# Lineage: what a delta records of its chain


def test_a_delta_tells_every_request_with_the_delta_it_left(tiny_base: Base, tmp_path: Path) -> None:
    first = erase(tiny_base, "esd", ["cat"])
    second = erase(tiny_base, "fade", ["cat", "dog"], first)
    third = erase(tiny_base, "esd", ["cat", "dog", "bus"], second)
    third.save(tmp_path / "third.safetensors")
    requests = Delta.load(tmp_path / "third.safetensors").lineage
    assert [(r["method"], r["concepts"]) for r in requests] == [("esd", ["cat"]), ("fade", ["dog"]), ("esd", ["bus"])]
    assert [r["job_id"] for r in requests] == [delta.provenance["job_id"] for delta in (first, second, third)]
    assert [r["delta"] for r in requests] == [first.id, second.id, third.id]


def test_taken_back_and_branched_a_chain_shares_its_past_and_nothing_else(tiny_base: Base) -> None:
    first, second, third = chain(tiny_base, "esd", CHAIN)
    branch = erase(tiny_base, "esd", ["cat", "fox"], first)  # the dog's request is taken back
    assert third.lineage[0] == branch.lineage[0] == first.lineage[0]
    assert third.lineage[1] == second.lineage[1] != branch.lineage[1]
    assert [r["concepts"] for r in branch.lineage] == [["cat"], ["fox"]]
    assert chain(tiny_base, "esd", ["cat", "dog"])[1].id == second.id


@pytest.mark.parametrize(("strategy", "before"), [("single", ["cat"]), ("multi", ["cat", "dog"])])
def test_a_chain_may_go_on_from_a_delta_that_began_none(strategy: Any, before: list[str], tiny_base: Base) -> None:
    start = make_job("tiny", tiny_base.fingerprint, "uce", WORLD, before, strategy=strategy)
    parent = run_job(start, tiny_base, WORLD)[0]
    delta = erase(tiny_base, "uce", [*before, "bus"], parent)
    result = [(r["job_id"], r["concepts"], r["delta"]) for r in delta.lineage]
    assert result == [(start.id, before, parent.id), (delta.provenance["job_id"], ["bus"], delta.id)]


# What is erased is nothing to hold on to


def test_an_anchor_that_is_gone_gives_way_to_one_that_stands() -> None:
    def anchor(name: str, *erased: str) -> str | None:
        return with_remaining_anchor(WORLD.find(name), WORLD, erased).anchor

    assert anchor("fox") == "dog"
    assert anchor("fox", "dog") == "cat"  # the dog's own anchor
    assert anchor("fox", "dog", "cat") == "owl"  # cat and dog are each other's; the first of its kind that stands
    assert anchor("cat", "dog") == "fox"  # the dog's anchor is the cat itself; the first adjacent one
    assert anchor("cat", "dog", "fox") == "owl"
    assert anchor("cat", "dog", "fox", "owl") is None
    assert anchor("bus", "tram") == "a road"  # a plain phrase always stands
    assert anchor("owl", "cat") is None  # none was given


def test_an_anchor_that_says_a_concepts_phrase_means_that_concept() -> None:
    cat = Concept(name="cat", kind="animal", phrase="a cat", anchor="A dog", adjacent=("owl",))
    dog = Concept(name="dog", kind="animal", phrase="a dog", anchor="a  Cat")
    world = ConceptSet(name="w", version=1, concepts=(cat, dog, Concept(name="owl", kind="animal", phrase="an owl")))
    assert with_remaining_anchor(cat, world, ()).anchor == "A dog"
    assert with_remaining_anchor(cat, world, ("dog",)).anchor == "owl"  # neither what is gone, nor itself


@pytest.mark.parametrize("strategy", ["multi", "continual"])
def test_nothing_is_mapped_to_what_is_erased_with_it(strategy: Any, tiny_base: Base) -> None:
    """Cat and dog, each the other's anchor, are mapped to fox and owl, the nearest that stand: as given by hand."""
    if strategy == "continual":
        found = chain(tiny_base, "uce", ["cat", "dog"])[-1]
    else:
        both = make_job("tiny", tiny_base.fingerprint, "uce", WORLD, ["cat", "dog"], strategy="multi")
        found = run_job(both, tiny_base, WORLD)[0]
    anchors = {"cat": "a fox", "dog": "an owl"}
    by_hand = ConceptSet(
        name="by hand",
        version=1,
        concepts=tuple(concept.model_copy(update={"anchor": anchors.get(concept.name)}) for concept in WORLD.concepts),
    )
    method: Any = get_method("uce")(parse_config("uce", {}))
    expected = method.solve(UnlearningTask(tiny_base, (by_hand.find("cat"), by_hand.find("dog")), by_hand, seed=0))
    assert same(found.tensors, {name: value.detach() for name, value in expected.items()})


@pytest.mark.parametrize("config", [{"neighbours": "adjacent"}, {"neighbours": "computed", "candidates": None}])
def test_an_erased_concept_is_no_neighbour(
    config: dict[str, Any], tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efface.train.data.neighbours.nearest", lambda base, target, phrases, *rest: phrases)
    method: Any = get_method("fade")(parse_config("fade", {**QUICK["fade"], **config}))
    task = UnlearningTask(tiny_base, (WORLD.find("dog"),), WORLD, 0, erased=(WORLD.find("fox"), WORLD.find("bus")))
    neighbours = method.neighbours(WORLD.find("dog"), task)
    assert "owl" in neighbours and not {"fox", "bus", "dog"} & set(neighbours)


def test_the_method_is_given_the_new_request_and_what_was_erased_before(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[UnlearningTask] = []
    esd: Any = get_method("esd")
    prepare = esd.prepare
    monkeypatch.setattr(esd, "prepare", lambda self, task, student: (tasks.append(task), prepare(self, task, student)))
    chain(tiny_base, "esd", CHAIN)
    result = [([c.name for c in task.concepts], [c.name for c in task.erased]) for task in tasks]
    assert result == [(["cat"], []), (["dog"], ["cat"]), (["bus"], ["cat", "dog"])]


# Wrong parents

Change = Callable[[Delta], Delta]


def with_provenance(delta: Delta, **changes: Any) -> Delta:
    return Delta(delta.kind, delta.tensors, {**delta.provenance, **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda delta: None, "goes on from the delta of job [0-9a-f]{16}, which was not given"),
        (lambda delta: with_provenance(delta, job_id="f" * 16), "and delta [0-9a-f]{16} is of ffffffffffffffff"),
        (lambda delta: Delta("weights", delta.tensors, {"base_id": delta.base_id}), "is of no job"),
        (
            lambda delta: with_provenance(delta, job={**delta.provenance["job"], "base_id": "e" * 64}),
            "was made from the base eeeeeeeeeeeeeeee, not from",
        ),
        (
            lambda delta: with_provenance(delta, job={**delta.provenance["job"], "concepts": ["fox"]}),
            "goes on from one that erased cat, and delta [0-9a-f]{16} erased fox",
        ),
        (lambda delta: Delta("hook", {}, delta.provenance), "acts at sampling time and changes no weight"),
    ],
)
def test_a_parent_that_is_not_the_request_before_is_refused(change: Change, message: str, tiny_base: Base) -> None:
    first, before = erase(tiny_base, "esd", ["cat"]), copies(tiny_base)
    wanted = job(tiny_base, "esd", ["cat", "bus"], first)
    with pytest.raises(UserError, match=message):
        run_job(wanted, tiny_base, WORLD, parent=change(first))
    assert same(copies(tiny_base), before)


def test_a_job_that_starts_from_the_base_takes_no_parent(tiny_base: Base) -> None:
    first = erase(tiny_base, "uce", ["cat"])
    with pytest.raises(UserError, match="starts from the base, so it cannot go on from delta"):
        run_job(job(tiny_base, "uce", ["cat"]), tiny_base, WORLD, parent=first)


@pytest.mark.parametrize(
    ("method", "config", "made"),
    [("esd", {"variant": "x-strict"}, "made by 'esd'"), ("uce", {"ridge": 2.0}, "made with another config")],
)
def test_a_solved_chain_is_of_one_method_and_one_config(
    method: str, config: dict[str, Any], made: str, tiny_base: Base
) -> None:
    first = erase(tiny_base, method, ["cat"], **config)
    with pytest.raises(UserError, match=f"method 'uce' solves the requests of a chain together.*was {made}"):
        erase(tiny_base, "uce", ["cat", "bus"], first)

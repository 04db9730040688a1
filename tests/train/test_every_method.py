"""What every registered method keeps to. A new method is tested here by being registered."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic.fields import FieldInfo
from quick_methods import QUICK

from efface.concepts.concept import Concept, ConceptSet
from efface.errors import UserError
from efface.models.base import Base, load_base
from efface.models.delta import Delta
from efface.models.parameter_groups import select
from efface.train.composed_method import ComposedMethod
from efface.train.hook_method import HookMethod
from efface.train.job import Job, make_job
from efface.train.method import GradientMethod, get_method, method_names, parse_config
from efface.train.run_job import run_job

QuickJob = Callable[..., Job]
Training = Callable[..., "Trained"]
every_method = pytest.mark.parametrize("name", method_names())
HOLDING_BY_NAME = ("age", "double-projections", "eap", "fade", "mace", "rece", "speed", "uce")
"""Those that hold concepts still which the set names, in the settings of `quick_job`."""
CONTINUAL = [name for name in method_names() if "continual" in get_method(name).strategies]


def checksum(base: Base) -> str:
    digest = hashlib.sha256()
    for name, tensor in base.tensors().items():
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Trained:
    """One training of a method, which several tests look at and none changes."""

    job: Job
    base: Base
    """What it was trained on."""
    base_before: str
    """The checksum of that before the training."""
    delta: Delta
    metrics: dict[str, Any]
    steps: list[tuple[int, int, float]]


@pytest.fixture(scope="module")
def trained(tiny_base_folder: Path, concept_set: ConceptSet) -> Training:
    """A function (method, **config) -> its quick job to forget the cat, done once for this module."""

    @cache
    def train(name: str, **config: Any) -> Trained:
        base = load_base(tiny_base_folder)
        settings = {**QUICK.get(name, {}), **config}
        job = make_job("tiny", base.fingerprint, name, concept_set, ["cat"], config=settings)
        steps: list[tuple[int, int, float]] = []
        before = checksum(base)
        delta, metrics = run_job(job, base, concept_set, lambda *step: steps.append(step))
        return Trained(job, base, before, delta, metrics, steps)

    return train


def ranged(name: str) -> list[tuple[str, FieldInfo]]:
    fields = get_method(name).Config.model_fields.items()
    return [(key, field) for key, field in fields if any(hasattr(m, "ge") or hasattr(m, "gt") for m in field.metadata)]


@every_method
def test_an_unknown_field_is_refused_with_the_nearest_known_one(name: str) -> None:
    field = max(get_method(name).Config.model_fields, key=len)
    with pytest.raises(UserError, match=rf"unknown key '{field}x', did you mean '{field}'\?"):
        parse_config(name, {f"{field}x": 1})


@every_method
def test_every_field_says_what_it_is(name: str) -> None:
    silent = [key for key, field in get_method(name).Config.model_fields.items() if not field.description]
    assert silent == []


@every_method
def test_numbers_out_of_range_or_not_finite_are_refused_by_name(name: str, quick_job: QuickJob) -> None:
    for key, field in ranged(name):
        bound = next(m for m in field.metadata if hasattr(m, "ge") or hasattr(m, "gt"))
        below = bound.ge - 1 if hasattr(bound, "ge") else bound.gt
        for wrong in (below, float("nan")):
            with pytest.raises(UserError, match=key):
                quick_job(name, **{key: wrong})


@every_method
def test_the_same_job_gives_the_same_bytes(
    name: str, trained: Training, quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet, tmp_path: Path
) -> None:
    trained(name).delta.save(tmp_path / "first")
    torch.manual_seed(1)  # numbers generated before do not matter
    run_job(quick_job(name), tiny_base, concept_set)[0].save(tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@every_method
def test_another_seed_gives_other_weights_where_anything_is_drawn(
    name: str, trained: Training, quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet
) -> None:
    one = trained(name).delta.tensors
    other = run_job(quick_job(name, 1), tiny_base, concept_set)[0].tensors
    same = all(torch.equal(one[key], other[key]) for key in one)
    assert same != get_method(name).draws


@every_method
def test_only_the_parameter_group_changes_and_the_teacher_not_at_all(
    name: str, trained: Training, tiny_base: Base
) -> None:
    job, base, delta = trained(name).job, trained(name).base, trained(name).delta
    originals = {key: value.clone() for key, value in tiny_base.tensors().items()}
    assert checksum(base) == trained(name).base_before == checksum(tiny_base)
    assert not any(module.training for module in (base.unet, base.text_encoder, base.vae))
    assert not any(parameter.requires_grad for parameter in base.unet.parameters())
    allowed = set(select(tiny_base, get_method(name)(parse_config(name, job.config)).group))
    tiny_base.swap(delta)
    changed = {key for key, value in tiny_base.tensors().items() if not torch.equal(value, originals[key])}
    assert bool(changed) != (delta.kind == "hook") and changed <= allowed


@every_method
def test_saved_read_applied_and_reverted_is_exact(
    name: str, trained: Training, tiny_base: Base, tmp_path: Path
) -> None:
    before = checksum(tiny_base)
    delta = trained(name).delta
    delta.save(tmp_path / "delta.safetensors")
    read = Delta.load(tmp_path / "delta.safetensors")
    assert read.id == delta.id and read.kind == delta.kind and read.provenance == delta.provenance
    edited = {key: value.clone() for key, value in delta.edited(tiny_base).items()}
    tiny_base.swap(read)
    assert all(torch.equal(tiny_base.tensors()[key], value) for key, value in edited.items())
    tiny_base.swap(None)
    assert checksum(tiny_base) == before


@every_method
def test_the_metrics_tell_every_step(name: str, trained: Training) -> None:
    seen, metrics = trained(name).steps, trained(name).metrics
    assert [loss for _, _, loss in seen] == metrics.losses
    assert [done for done, _, _ in seen] == list(range(1, len(seen) + 1))
    assert all(steps == len(seen) for _, steps, _ in seen)
    assert (metrics.samples_seen > 0) == issubclass(get_method(name), GradientMethod | ComposedMethod)
    assert metrics.seconds > 0


@every_method
def test_a_job_can_be_made_again_from_its_delta(name: str, trained: Training) -> None:
    job, provenance = trained(name).job, trained(name).delta.provenance
    assert Job.model_validate(provenance["job"]) == job and provenance["job_id"] == job.id


def next_request(name: str, trained: Training, concept_set: ConceptSet) -> tuple[Job, Delta]:
    """The dog's request after the cat's, which changed all of the UNet, or is the method's own."""
    follows_any = issubclass(get_method(name), GradientMethod)
    before = trained("esd", variant="full") if follows_any else trained(name)
    job = make_job(
        before.job.base,
        before.job.base_id,
        name,
        concept_set,
        ["cat", "dog"],
        config=QUICK.get(name, {}),
        strategy="continual",
        parent=before.job.id,
    )
    return job, before.delta


@pytest.mark.parametrize("name", CONTINUAL)
def test_a_request_after_another_is_repeatable_and_changes_its_group_alone(
    name: str, trained: Training, tiny_base: Base, concept_set: ConceptSet, tmp_path: Path
) -> None:
    before = checksum(tiny_base)
    job, parent = next_request(name, trained, concept_set)
    delta, _ = run_job(job, tiny_base, concept_set, parent=parent)
    assert tiny_base.applied is None and checksum(tiny_base) == before

    parent.save(tmp_path / "parent")
    torch.manual_seed(1)  # numbers generated before do not matter, nor whether the parent was saved meanwhile
    again, _ = run_job(job, tiny_base, concept_set, parent=Delta.load(tmp_path / "parent"))
    delta.save(tmp_path / "first")
    again.save(tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()

    allowed = set(select(tiny_base, get_method(name)(parse_config(name, job.config)).group))
    old, new = parent.edited(tiny_base), delta.edited(tiny_base)
    assert old.keys() <= new.keys()
    changed = {key for key in new if key not in old or not torch.equal(new[key], old[key])}
    assert bool(changed) != issubclass(get_method(name), HookMethod) and changed <= allowed


def with_bystander(concept_set: ConceptSet, phrase: str, held_out: bool) -> ConceptSet:
    """The set with a further concept that is adjacent to the cat and must stay, as any other of the set."""
    cat, *others = concept_set.concepts
    bystander = Concept(name="bystander", kind="animal", phrase=phrase, held_out=held_out)
    cat = cat.model_copy(update={"adjacent": ("bystander", *cat.adjacent)})
    return ConceptSet(name="tests", version=1, concepts=(cat, bystander, *others))


def edited_with(name: str, quick_job: QuickJob, base: Base, concept_set: ConceptSet) -> Delta:
    job = quick_job(name).model_copy(update={"concept_set_sha256": concept_set.sha256})
    return run_job(job, base, concept_set)[0]


def same_edit(one: Delta, other: Delta) -> bool:
    """Whether they change the same by the same, and their hooks, if any, do the same."""
    same_keys = one.tensors.keys() == other.tensors.keys()
    same_hook = one.provenance.get("hook") == other.provenance.get("hook")
    return same_keys and same_hook and all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)


@every_method
def test_no_method_sees_a_concept_that_is_held_out(
    name: str, quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet
) -> None:
    """Whatever it is, the result is the same; shown, it changes those that hold neighbours or retained ones still."""
    one, other = (
        edited_with(name, quick_job, tiny_base, with_bystander(concept_set, phrase, held_out=True))
        for phrase in ("an owl", "a green tractor")
    )
    assert same_edit(one, other)
    if name in HOLDING_BY_NAME:
        shown = with_bystander(concept_set, "an owl", held_out=False)
        assert not same_edit(one, edited_with(name, quick_job, tiny_base, shown))


@every_method
def test_no_config_can_name_a_concept_that_is_held_out(
    name: str, quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet
) -> None:
    held_out = with_bystander(concept_set, "an owl", held_out=True)
    config = quick_job(name).config
    for key, value in config.items():
        text = "a Bystander, {}"
        try:
            given = parse_config(name, {**config, key: text if isinstance(value, str) else [text]})
        except UserError:
            continue  # no field for words
        job = partial(make_job, "tiny", tiny_base.fingerprint, name, held_out, config=given.model_dump(mode="json"))
        with pytest.raises(UserError, match=f"{key}: '{text}' names bystander, which concept set tests holds out"):
            job(["cat"])
        assert job(["bystander"]).concepts == ("bystander",)

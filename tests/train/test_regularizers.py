"""What a job may add to any method: the loss's shape, the pull to the start, selected entries, protected prompts."""

import math
from typing import Any

import pytest
import torch

from efface.concepts.concept import ConceptSet
from efface.errors import UserError
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.text.text_encoding import encode_prompts, token_ids
from efface.train.run_job import run_job
from efface.train.trainer.loop import learning_rate_factor
from efface.train.trainer.options import TrainingOptions
from efface.train.trainer.regularizers import adapted_distance, complement_projector, distance, hellinger


def change(job: Any, base: Base, concept_set: ConceptSet) -> dict[str, torch.Tensor]:
    delta, _ = run_job(job, base, concept_set)
    originals = base.originals()
    return {name: (value - originals[name]).double() for name, value in delta.edited(base).items()}


def test_the_hellinger_shape_and_its_gradient() -> None:
    loss = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    shaped = hellinger(loss, 2.0)
    assert float(shaped.detach()) == pytest.approx(1 - math.exp(-0.35), abs=1e-15)
    shaped.backward()
    assert float(loss.grad) == pytest.approx(math.exp(-0.35) / 2, abs=1e-15)


def test_the_distance_is_the_mean_over_all_entries_of_all_tensors() -> None:
    start = {"a": torch.tensor([0.0, 0.0, 0.0]), "b": torch.tensor([[1.0]])}
    now = {"a": torch.tensor([1.0, -2.0, 0.0]), "b": torch.tensor([[4.0]])}
    assert float(distance(now, start, "l1")) == pytest.approx((1 + 2 + 3) / 4)
    assert float(distance(now, start, "l2")) == pytest.approx((1 + 4 + 9) / 4)


def test_a_projector_maps_what_is_protected_to_nothing_and_the_rest_to_itself() -> None:
    embeddings = torch.tensor([[1.0, 1.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0]])  # one direction, twice
    projector = complement_projector(embeddings)
    torch.testing.assert_close(projector @ embeddings.T.double(), torch.zeros(4, 2, dtype=torch.float64))
    other = torch.tensor([[1.0, -1.0, 3.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(other @ projector, other)
    with pytest.raises(UserError, match="protect fewer"):
        complement_projector(torch.eye(3))


@pytest.mark.parametrize("rank", [1, 3])
def test_of_adapters_the_change_of_the_weights_counts_and_not_their_factors(
    rank: int, prepare: Any, tiny_base: Base
) -> None:
    spm, _ = prepare("spm", rank=rank, alpha=2.0)
    layers = spm.adapters.layers.values()
    with torch.no_grad():
        for adapter in layers:
            adapter.down.mul_(3)  # with `up` at zero the model stays as it is
        assert float(adapted_distance(spm.adapters, "l1")) == float(adapted_distance(spm.adapters, "l2")) == 0.0
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for adapter in layers:
            adapter.up.copy_(torch.randn(adapter.up.shape, generator=rng))
    delta = Delta("adapter", spm.adapters.tensors(), {"base_id": tiny_base.fingerprint})
    originals = tiny_base.originals()
    changes = [(value - originals[name]).double() for name, value in delta.edited(tiny_base).items()]
    entries = torch.cat([value.flatten() for value in changes])
    l1, l2 = (float(adapted_distance(spm.adapters, norm).detach()) for norm in ("l1", "l2"))
    assert l1 == pytest.approx(float(entries.abs().mean()), rel=1e-5)
    assert l2 == pytest.approx(float(entries.square().mean()), rel=1e-5)


@pytest.mark.parametrize(("norm", "weight"), [("l1", 1.0), ("l2", 3000.0)])
def test_near_its_start_a_job_changes_less(
    norm: str, weight: float, quick_job: Any, tiny_base: Base, concept_set: ConceptSet
) -> None:
    how = {"steps": 4, "optimizer": "sgd", "learning_rate": 1.0}
    sizes = []
    for used in (0.0, weight):
        changed = change(quick_job("esd", near_start=norm, near_start_weight=used, **how), tiny_base, concept_set)
        sizes.append(math.sqrt(sum(float(value.square().sum()) for value in changed.values())))
    assert sizes[1] < 0.95 * sizes[0]


@pytest.mark.parametrize(("method", "config"), [("esd", {"variant": "x-strict"}), ("spm", {}), ("ca", {})])
def test_the_realised_change_does_not_act_on_protected_prompts_though_adamw_bends_gradients(
    method: str, config: dict[str, Any], quick_job: Any, tiny_base: Base, concept_set: ConceptSet
) -> None:
    """||Delta c|| / (||Delta|| ||c||) of the mean token embedding c of each protected prompt, by hand."""
    prompts = ["a dog", "a red fox"]
    free = quick_job(method, optimizer="adamw", weight_decay=0.1, **config)
    held = quick_job(method, optimizer="adamw", weight_decay=0.1, protect=prompts, **config)

    def largest(job: Any) -> float:
        found = []
        for name, delta in change(job, tiny_base, concept_set).items():
            if ".attn2.to_k." in name or ".attn2.to_v." in name:
                for prompt in prompts:
                    ids = token_ids(tiny_base, [prompt])[0]
                    end = int((ids == tiny_base.tokenizer.eos_token_id).nonzero()[0])
                    row = encode_prompts(tiny_base, [prompt]).encoder_hidden_states[0, 1:end].double().mean(dim=0)
                    found.append(float((delta @ row).norm() / (delta.norm() * row.norm())))
        assert found
        return max(found)

    assert largest(held) < 1e-5 < 1e-3 < largest(free)


@pytest.mark.parametrize(("select", "method"), [("gradient", "esd"), ("importance", "sdd"), ("gradient", "fmn")])
def test_any_method_may_train_selected_entries_alone(
    select: str, method: str, quick_job: Any, tiny_base: Base, concept_set: ConceptSet
) -> None:
    job = quick_job(method, select=select, select_share=0.05, select_batches=2, weight_decay=0.1, optimizer="adamw")
    changed = change(job, tiny_base, concept_set)
    count = sum(value.numel() for value in changed.values())
    assert 0 < sum(int((value != 0).sum()) for value in changed.values()) <= math.ceil(0.05 * count)


def test_what_cannot_be_is_refused(quick_job: Any, tiny_base: Base, concept_set: ConceptSet) -> None:
    with pytest.raises(UserError, match="protect is for keys and values"):
        run_job(quick_job("esd", variant="selfattn", protect="retained"), tiny_base, concept_set)
    with pytest.raises(UserError, match="protect and select exclude each other"):
        run_job(quick_job("esd", protect="retained", select="gradient"), tiny_base, concept_set)
    with pytest.raises(UserError, match="protect does not hold"):
        run_job(quick_job("mace", protect="retained"), tiny_base, concept_set)
    with pytest.raises(UserError, match="near_start does not hold, as its weights are solved for"):
        run_job(quick_job("mace", near_start_weight=1.0), tiny_base, concept_set)
    with pytest.raises(UserError, match="near_start does not hold, as it changes no weight"):
        run_job(quick_job("receler", near_start_weight=1.0), tiny_base, concept_set)
    with pytest.raises(UserError, match=r"leave out training\.deepspeed"):
        options = TrainingOptions(deepspeed="zero2")
        run_job(quick_job("esd", near_start_weight=1.0), tiny_base, concept_set, training_options=options)


def test_a_cosine_may_start_again() -> None:
    factors = [learning_rate_factor(step, 12, 0, "cosine", 3) for step in range(12)]
    assert factors[0] == factors[4] == factors[8] == pytest.approx(1.0)
    assert factors[2] == pytest.approx(0.5) and factors[:4] == pytest.approx(factors[4:8])

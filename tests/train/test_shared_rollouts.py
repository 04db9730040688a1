"""Shared and stored trajectories: what is rolled out when, and that storing changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from quick_methods import QUICK

from efface.errors import Stopped
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.text.text_encoding import encode_prompts
from efface.train.data import rollout_store
from efface.train.data.rollout_store import FrozenRollouts, RolloutStore
from efface.train.data.rollouts import Rollouts
from efface.train.data.shared_rollouts import SharedRollouts, rollouts_share
from efface.train.job import Job
from efface.train.method import parse_config
from efface.train.run_job import run_job
from efface.train.trainer.options import TrainingOptions


def shared(steps: int, batches: int = 1, seed: int = 0) -> SharedRollouts:
    return SharedRollouts(
        parse_config("esd", {"steps_per_rollout": steps, "gradient_accumulation_steps": batches}), seed
    )  # type: ignore[arg-type]


def test_without_sharing_each_batch_has_its_own_trajectory_and_stop() -> None:
    assert [shared(1, 2).source(index) for index in range(6)] == list(range(6))
    assert shared(1).stops(3, 7, range(10)) == [7] and shared(1).state_index(3) == 0


def test_batches_of_a_step_keep_their_own_trajectories_for_so_many_steps() -> None:
    """Two batches a step, three steps a trajectory: batches 0, 2 and 4 learn from one, 1, 3 and 5 from another."""
    found = shared(3, 2)
    assert [found.source(index) for index in range(12)] == [0, 1] * 3 + [6, 7] * 3
    assert [found.state_index(index) for index in range(12)] == [0, 0, 1, 1, 2, 2] * 2


def test_the_stops_of_a_trajectory_differ_and_each_is_as_likely_as_any_other() -> None:
    counts = torch.zeros(4)
    for seed in range(400):
        stops = shared(3, seed=seed).stops(0, seed % 4, range(4))
        assert len(set(stops)) == 3
        counts += torch.bincount(torch.tensor(stops[1:]), minlength=4)
    assert stops_are_even(counts)
    assert set(shared(5).stops(0, 2, range(3))) == {0, 1, 2}  # where there are fewer, all of them, and again


def stops_are_even(counts: torch.Tensor) -> bool:
    """800 draws of four: 200 each, with a standard deviation of 12."""
    return bool(((counts - 200).abs() < 4 * 12.2).all())


@pytest.mark.parametrize(("steps", "stops", "first"), [(1, 10, 0), (4, 10, 0), (3, 7, 1), (9, 5, 0)])
def test_the_passes_that_a_cost_counts_are_those_of_the_last_stop(steps: int, stops: int, first: int) -> None:
    config: Any = parse_config("esd", {"steps_per_rollout": steps})
    allowed = range(first, first + stops)
    drawn = [max(shared(steps, seed=seed).stops(0, allowed[seed % stops], allowed)) / steps for seed in range(2000)]
    assert rollouts_share(config, stops, first) == pytest.approx(sum(drawn) / 2000, rel=0.05)


@pytest.mark.parametrize("method", ["esd", "spm", "fade"])
def test_a_trajectory_is_rolled_out_once_for_all_its_steps(
    method: str, prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = prepare(method, steps_per_rollout=3, steps=6)
    made = []
    really = job.rollouts.run_past
    monkeypatch.setattr(job.rollouts, "run_past", lambda *of: made.append(len(of[-1])) or really(*of))
    with torch.no_grad():
        batches = [job.batch(index) for index in range(6)]
    assert made == [3, 3]
    assert len(batches) == 6


@pytest.mark.parametrize("method", ["esd", "fade"])
def test_a_run_cut_short_within_a_trajectory_ends_where_an_uninterrupted_one_does(
    method: str, quick_job: Any, tiny_base: Base, concept_set: Any, tmp_path: Path
) -> None:
    job: Job = quick_job(method, steps_per_rollout=3, steps=4)

    def stop_after_two(done: int, steps: int, loss: float) -> None:
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run_job(job, tiny_base, concept_set, stop_after_two, checkpoint=tmp_path / "c")
    resumed, _ = run_job(job, tiny_base, concept_set, checkpoint=tmp_path / "c")
    whole, _ = run_job(job, tiny_base, concept_set)
    assert resumed.id == whole.id
    assert whole.provenance["job"]["config"]["steps_per_rollout"] == 3


def test_variants_share_the_trajectories_of_the_frozen_model_and_end_where_they_end_without(
    quick_job: Any, tiny_base: Base, concept_set: Any, tmp_path: Path
) -> None:
    first, second = (quick_job("esd", on_policy=False, eta=eta) for eta in (1.0, 2.0))
    alone = [run_job(job, tiny_base, concept_set)[0].id for job in (first, second)]
    stored = [run_job(first, tiny_base, concept_set, cache=tmp_path)[0].id]
    kept = sorted((tmp_path / "rollouts").iterdir())
    stored.append(run_job(second, tiny_base, concept_set, cache=tmp_path)[0].id)
    assert stored == alone
    assert sorted((tmp_path / "rollouts").iterdir()) == kept and len(kept) == QUICK["esd"]["steps"]


def test_what_is_stored_is_what_the_method_reads(
    quick_job: Any, tiny_base: Base, concept_set: Any, tmp_path: Path
) -> None:
    """Written over with zeros, it is what the job trains on; damaged, it is made again."""
    job = quick_job("esd", on_policy=False)
    right = run_job(job, tiny_base, concept_set, cache=tmp_path)[0]
    store = RolloutStore(tmp_path / "rollouts", 10**9)
    for path in store.folder.iterdir():
        held = store.get(path.stem)
        assert held
        store.put(path.stem, {name: torch.zeros_like(value) for name, value in held.items()})
    assert run_job(job, tiny_base, concept_set, cache=tmp_path)[0].id != right.id
    for path in store.folder.iterdir():
        path.write_bytes(b"half a file")
    assert run_job(job, tiny_base, concept_set, cache=tmp_path)[0].id == right.id


@pytest.mark.parametrize(("scale", "passes"), [(3.0, 7), (1.0, 10)])
def test_what_guidance_predicted_on_the_way_is_kept_bit_for_bit(tiny_base: Base, scale: float, passes: int) -> None:
    """Six steps before the last stop, at four of which both predictions are wanted: they are there, if guided."""
    config: Any = parse_config("esd", {"rollout_steps": 8, "guidance_scale": scale, "batch_size": 2})
    rollouts = Rollouts(tiny_base, config)
    counted = 0

    def teacher(latents: torch.Tensor, timestep: Any, conditioning: Any) -> torch.Tensor:
        nonlocal counted
        counted += 1
        return tiny_base.denoiser(latents, timestep, conditioning)

    cond, start = encode_prompts(tiny_base, ["a cat"]), rollouts.start(torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = FrozenRollouts(tiny_base, rollouts, "fp32", None).states(teacher, start, cond, [2, 0, 6, 4])
        assert counted == passes
        both = Conditioning.cat([rollouts.uncond.expand(2), cond.expand(2)])
        for i in range(4):
            anew = tiny_base.denoiser(found.latents[i].repeat(2, 1, 1, 1), found.timesteps[i], both)
            assert torch.equal(torch.cat([found.uncond[i], found.cond[i]]), anew)


def test_a_store_forgets_what_was_used_least_lately(tmp_path: Path) -> None:
    import os

    store = RolloutStore(tmp_path, 2500)
    for number, key in enumerate("ab"):
        store.put(key, {"x": torch.zeros(256)})  # 1 KiB and a header
        os.utime(tmp_path / f"{key}.safetensors", (number, number))
    store.get("a")
    store.put("c", {"x": torch.zeros(256)})
    assert store.get("b") is None and store.get("a") is not None and store.get("c") is not None


def test_a_store_is_bounded_whoever_writes_how_little(tmp_path: Path) -> None:
    """20 jobs of 20 trajectories of about a KiB, each with a store of its own on the same folder."""

    def held() -> int:
        return sum(path.stat().st_size for path in tmp_path.iterdir())

    for job in range(20):
        store = RolloutStore(tmp_path, 2500)
        for number in range(20):
            store.put(f"{job}-{number}", {"x": torch.zeros(256)})
            assert held() <= 2500
    larger = RolloutStore(tmp_path, 40_000)  # a sixteenth of it is two trajectories
    for number in range(60):
        larger.put(f"last-{number}", {"x": torch.zeros(256)})
        assert held() <= 40_000 * (1 + 1 / 16)
    larger.close()
    assert held() <= 40_000


def test_a_job_leaves_no_more_in_the_store_than_it_may_hold(
    quick_job: Any, tiny_base: Base, concept_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_store, "UNCHECKED", 1e9)  # so that only the first and the end are looked at
    options = TrainingOptions(rollout_gigabytes=1e-6)
    run_job(quick_job("esd", on_policy=False), tiny_base, concept_set, cache=tmp_path, training_options=options)
    assert sum(path.stat().st_size for path in (tmp_path / "rollouts").iterdir()) <= 1000


def test_sharing_roll_outs_makes_another_job(quick_job: Any) -> None:
    assert quick_job("esd").id != quick_job("esd", steps_per_rollout=2).id

"""A gang of processes does one process's job: it shares the batches of every step."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from efface.concepts.concept import ConceptSet
from efface.errors import UserError
from efface.models.base import load_base
from efface.train.job import make_job, run_job

CONFIG = {"steps": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "rollout_steps": 3, "optimizer": "sgd"}


def member(rank: int, port: int, folder: Path, concept_set: ConceptSet, out: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo")
    base = load_base(folder)
    job = make_job("tiny", base.fingerprint, "esd", concept_set, ["cat"], config=CONFIG)
    delta, metrics = run_job(job, base, concept_set)
    torch.save((delta.tensors, metrics["losses"]), out / f"{rank}.pt")
    odd = make_job(
        "tiny", base.fingerprint, "esd", concept_set, ["cat"], config={**CONFIG, "gradient_accumulation_steps": 3}
    )
    with pytest.raises(UserError, match="gradient_accumulation_steps is 3, which 2 processes cannot share"):
        run_job(odd, base, concept_set)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_delta_and_losses_of_one(
    tiny_base_folder: Path, concept_set: ConceptSet, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(member, (port, tiny_base_folder, concept_set, tmp_path), nprocs=2)
    base = load_base(tiny_base_folder)
    job = make_job("tiny", base.fingerprint, "esd", concept_set, ["cat"], config=CONFIG)
    alone, metrics = run_job(job, base, concept_set)
    for rank in range(2):
        tensors, losses = torch.load(tmp_path / f"{rank}.pt")
        assert losses == pytest.approx(metrics["losses"], rel=1e-5)
        for name, value in alone.tensors.items():
            torch.testing.assert_close(tensors[name], value, rtol=1e-5, atol=1e-7)

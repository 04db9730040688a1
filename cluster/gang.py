"""A gang: several workers' worth of GPUs that train one job together, and the actor that leads it.

One placement group, one actor for each process with its own GPU, torchrun's variables set here, and the rendezvous at a
port of rank 0's, or at another where that is taken. Every process runs the same job (`train/loop.py` shares its batches
out); rank 0 keeps the result. If one of them dies, all are stopped, and the job goes on from its last checkpoint in a
new gang.
"""

import os
import socket
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from efface.cluster.plan import Model
from efface.cluster.worker import Outcome, Setting, Worker

RENDEZVOUS = 3
"""How many ports are tried: one that was free a moment ago may be taken."""

NOT_MET = "the processes of the gang did not meet"

GROUP_SECONDS = 300.0
"""How long the placement group may take; its GPUs were set free for it, so it should take none."""


class Member:
    """One process of a gang."""

    def address(self) -> tuple[str, int]:
        """This node's address, and a port that is free there."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((host, 0))
            return host, free.getsockname()[1]

    def run(self, setting: Setting, model: Model, halve: bool, rank: int, size: int, host: str, port: int) -> Outcome:
        """This rank's part in the training of a job."""
        import torch
        from torch.distributed import DistError

        from efface.train.launched import meet

        # Each sees its own GPU alone, as device 0, so each is the only one of its node as far as torch can tell.
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": host,
            "MASTER_PORT": str(port),
        }
        try:
            meet("nccl" if setting.gpus and torch.cuda.is_available() else "gloo")
        except DistError as error:
            return Outcome("fault", NOT_MET, str(error))
        return Worker(setting, rank=rank).run(model, halve)


class Leader:
    """Puts a gang together, waits for it, and takes it apart; needs no GPU itself."""

    def run(self, setting: Setting, model: Model, size: int, one_node: bool = False) -> Outcome:
        """Train a job with `size` processes; where one runs out of memory, again in batches of half the size.

        one_node: all of them have to be on the same node.
        """
        import ray

        strategy = "STRICT_PACK" if one_node else "PACK"
        try:
            outcome = self._together(setting, model, size, strategy, halve=False)
            if outcome.out_of_memory:
                outcome = replace(self._together(setting, model, size, strategy, halve=True), halved=True)
            return outcome
        except ray.exceptions.RayActorError as error:
            state: Literal["lost", "fault"] = "lost" if not_its_fault(error) else "fault"
            return Outcome(state, "a process of the gang died", str(error))
        except Exception as error:  # Ray Train has errors of its own
            return Outcome("fault", type(error).__name__, str(error))

    def _together(self, setting: Setting, model: Model, size: int, strategy: str, halve: bool) -> Outcome:
        from ray.util.placement_group import placement_group, remove_placement_group

        group = placement_group([_bundle(setting)] * size, strategy=strategy)
        try:
            if not group.wait(GROUP_SECONDS):
                return Outcome("lost", f"the cluster had no room for {size} processes")
            for _ in range(RENDEZVOUS):
                outcome = self._at_a_port(setting, model, size, halve, group)
                if outcome.reason != NOT_MET:
                    break
            return outcome
        finally:
            remove_placement_group(group)

    def _at_a_port(self, setting: Setting, model: Model, size: int, halve: bool, group: Any) -> Outcome:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        options = {"num_cpus": setting.cpus, "num_gpus": setting.gpus, "max_restarts": 0}
        places = [PlacementGroupSchedulingStrategy(group, rank) for rank in range(size)]
        members = [ray.remote(Member).options(**options, scheduling_strategy=place).remote() for place in places]
        try:
            host, port = ray.get(members[0].address.remote())
            waiting = [m.run.remote(setting, model, halve, rank, size, host, port) for rank, m in enumerate(members)]
            while waiting:
                ended, waiting = ray.wait(waiting, num_returns=1)
                outcome: Outcome = ray.get(ended[0])
                if outcome.state != "done":
                    break  # the others would wait for it for ever
            return outcome
        finally:
            for member in members:
                ray.kill(member)


class TrainLeader(Leader):
    """The same through Ray Train's `TorchTrainer`, which makes placement group and processes itself.

    It takes some fifteen seconds longer to start; for clusters whose operators want everything under Ray Train.
    """

    def _together(self, setting: Setting, model: Model, size: int, strategy: str, halve: bool) -> Outcome:
        from ray.train import RunConfig, ScalingConfig, WorkerGroupError
        from ray.train.torch import TorchTrainer

        def rank_of_a_job(config: dict[str, Any]) -> Outcome:
            outcome = Worker(setting, rank=int(os.environ["RANK"])).run(model, halve)
            if outcome.state != "done":
                raise NotDone(outcome)
            return outcome

        with tempfile.TemporaryDirectory(prefix="efface-train-") as scratch:
            scaling = ScalingConfig(
                num_workers=size,
                use_gpu=setting.gpus > 0,
                resources_per_worker=_bundle(setting),
                placement_strategy=strategy,
            )
            trainer = TorchTrainer(
                rank_of_a_job, train_loop_config={}, scaling_config=scaling, run_config=RunConfig(storage_path=scratch)
            )
            try:
                outcome = trainer.fit().return_value
            except WorkerGroupError as error:
                outcome = _first_told(error.worker_failures.values())
                if outcome is None:
                    raise
        return outcome if isinstance(outcome, Outcome) else Outcome("fault", "Ray Train gave no result")


class NotDone(Exception):
    """What a rank under Ray Train ends with if its part is not done: the others would wait for it for ever."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def _first_told(failures: Iterable[Exception]) -> Outcome | None:
    """Of what the ranks ended with, an outcome that says why, rather than that others were gone; None: all died."""
    ended = [getattr(failure, "_base_exc", failure) for failure in failures]  # Ray Train wraps them
    outcomes = [error.outcome for error in ended if isinstance(error, NotDone)]
    return min(outcomes, key=lambda told: told.state == "fault" and not told.out_of_memory, default=None)


def not_its_fault(error: Any) -> bool:
    """Whether a worker is gone with its node, or out of reach, and did not die of what it was doing."""
    from ray.exceptions import ActorUnavailableError

    # Of a worker that died alone Ray tells too, among its advice, of "node deaths".
    with_its_node = error.preempted or "because its node has died" in str(error)
    return with_its_node or isinstance(error, ActorUnavailableError)


def _bundle(setting: Setting) -> dict[str, float]:
    return {name: amount for name, amount in (("CPU", setting.cpus), ("GPU", setting.gpus)) if amount}

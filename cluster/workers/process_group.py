"""A process group: several workers' worth of GPUs that do one task together, and the actor that launches it.

One placement group, one actor for each process with its own GPU, torchrun's variables set here, and the rendezvous at a
port of rank 0, or at another where that is taken. Every process runs the same task (`train/trainer/loop.py` shares the
batches of a training); rank 0 keeps the result. If one of them dies, all are stopped, and a training goes on from its
last checkpoint in a new group.
"""

import os
import socket
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from efface.cluster.tasks.retry_rules import Next, Outcome, outcome_of_death
from efface.cluster.tasks.task import Task
from efface.cluster.workers.worker import Worker, WorkerContext

RENDEZVOUS_ATTEMPTS = 3
"""How many ports are tried: one that was free a moment ago may be taken."""

RENDEZVOUS_FAILED = "the processes of the group did not meet"

PLACEMENT_TIMEOUT = 300.0
"""How long the placement group may take, in seconds; its GPUs were released for it, so it should take none."""


class RankActor:
    """One process of a group."""

    def address(self) -> tuple[str, int]:
        """This node's address, and a port that is free there."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((host, 0))
            return host, free.getsockname()[1]

    def run(
        self, context: WorkerContext, task: Task, smaller_batch: bool, rank: int, size: int, host: str, port: int
    ) -> Outcome:
        """This rank's part of a task."""
        import torch
        from torch.distributed import DistError

        from efface.train.torchrun import init_process_group

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
            init_process_group("nccl" if context.gpus and torch.cuda.is_available() else "gloo")
        except DistError as error:
            return Outcome.error(RENDEZVOUS_FAILED, str(error))
        return Worker(context, rank=rank).run(task, smaller_batch)


class ActorLauncher:
    """Starts a process group, waits for it, and removes it; needs no GPU itself."""

    def run(self, context: WorkerContext, task: Task, size: int, one_node: bool = False) -> Outcome:
        """Do a task with `size` processes; where one runs out of memory, again with smaller batches.

        one_node: all of them have to be on the same node.
        """
        import ray

        strategy = "STRICT_PACK" if one_node else "PACK"
        try:
            outcome = self._run_process_group(context, task, size, strategy, smaller_batch=False)
            if outcome.out_of_memory:
                outcome = replace(
                    self._run_process_group(context, task, size, strategy, smaller_batch=True), smaller_batch=True
                )
            return outcome
        except ray.exceptions.RayActorError as error:
            return outcome_of_death(error, "a process of the group")
        except Exception as error:  # Ray Train has errors of its own
            return Outcome.error(type(error).__name__, str(error))

    def _run_process_group(
        self, context: WorkerContext, task: Task, size: int, strategy: str, smaller_batch: bool
    ) -> Outcome:
        from ray.util.placement_group import placement_group, remove_placement_group

        group = placement_group([_bundle(context)] * size, strategy=strategy)
        try:
            if not group.wait(PLACEMENT_TIMEOUT):
                return Outcome.worker_lost(f"the cluster did not have the resources for {size} processes")
            for _ in range(RENDEZVOUS_ATTEMPTS):
                outcome = self._run_ranks(context, task, size, smaller_batch, group)
                if outcome.reason != RENDEZVOUS_FAILED:
                    break
            return outcome
        finally:
            remove_placement_group(group)

    def _run_ranks(self, context: WorkerContext, task: Task, size: int, smaller_batch: bool, group: Any) -> Outcome:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        options = {"num_cpus": context.cpus, "num_gpus": context.gpus, "max_restarts": 0}
        strategies = [PlacementGroupSchedulingStrategy(group, rank) for rank in range(size)]
        rank_actors = [
            ray.remote(RankActor).options(**options, scheduling_strategy=strategy_of_rank).remote()
            for strategy_of_rank in strategies
        ]
        try:
            host, port = ray.get(rank_actors[0].address.remote())
            waiting = [
                m.run.remote(context, task, smaller_batch, rank, size, host, port) for rank, m in enumerate(rank_actors)
            ]
            while waiting:
                ended, waiting = ray.wait(waiting, num_returns=1)
                outcome: Outcome = ray.get(ended[0])
                if not outcome.is_done:
                    break  # the others would wait for it for ever
            return outcome
        finally:
            for rank_actor in rank_actors:
                ray.kill(rank_actor)


class RayTrainLauncher(ActorLauncher):
    """The same through Ray Train's `TorchTrainer`, which makes placement group and processes itself.

    It takes some fifteen seconds longer to start; for clusters whose operators want everything under Ray Train.
    """

    def _run_process_group(
        self, context: WorkerContext, task: Task, size: int, strategy: str, smaller_batch: bool
    ) -> Outcome:
        from ray.train import RunConfig, ScalingConfig, WorkerGroupError
        from ray.train.torch import TorchTrainer

        def train_loop(config: dict[str, Any]) -> Outcome:
            outcome = Worker(context, rank=int(os.environ["RANK"])).run(task, smaller_batch)
            if not outcome.is_done:
                raise RankNotDone(outcome)
            return outcome

        with tempfile.TemporaryDirectory(prefix="efface-train-") as scratch:
            scaling = ScalingConfig(
                num_workers=size,
                use_gpu=context.gpus > 0,
                resources_per_worker=_bundle(context),
                placement_strategy=strategy,
            )
            trainer = TorchTrainer(
                train_loop, train_loop_config={}, scaling_config=scaling, run_config=RunConfig(storage_path=scratch)
            )
            try:
                outcome = trainer.fit().return_value
            except WorkerGroupError as error:
                outcome = _root_cause(error.worker_failures.values())
                if outcome is None:
                    raise
        return outcome if isinstance(outcome, Outcome) else Outcome.error("Ray Train gave no result")


class RankNotDone(Exception):
    """What a rank under Ray Train ends with if its part is not done: the others would wait for it for ever."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def _root_cause(failures: Iterable[Exception]) -> Outcome | None:
    """Of what the ranks ended with, an outcome that says why, rather than that others were gone; None: all died."""
    ended = [getattr(failure, "_base_exc", failure) for failure in failures]  # Ray Train wraps them
    outcomes = [error.outcome for error in ended if isinstance(error, RankNotDone)]
    return min(outcomes, key=lambda outcome: outcome.next is Next.RETRY and not outcome.out_of_memory, default=None)


def _bundle(context: WorkerContext) -> dict[str, float]:
    return {name: amount for name, amount in (("CPU", context.cpus), ("GPU", context.gpus)) if amount}

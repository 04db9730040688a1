"""A Ray cluster of several nodes with invented CPUs and GPUs on this one machine, whose nodes can be killed and added.

It is kept by a process of its own, so that whoever uses it stays free of Ray and of its threads, and all its processes
listen on loopback alone.
"""

import multiprocessing
import os
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 20000,
    "health_check_failure_threshold": 4,
}
"""A dead node refuses connections and is noticed within seconds. One that is only slow has 20 seconds to answer: if Ray
took the head for dead, it would end all processes that are connected to it, the tests too."""


class NodesOnLoopback:
    """A head without resources, and `nodes` nodes with `resources` each; up while in the `with` block."""

    def __init__(self, nodes: int, **resources: float) -> None:
        """resources: `num_cpus`, `num_gpus`."""
        # Sockets have a limit of 107 characters to their paths.
        self._scratch = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        self._nodes, self._resources = nodes, resources
        self._pipe, there = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        self._process = spawn.Process(target=_serve, args=(there, self._scratch.name), daemon=True)
        self.address = ""

    def __enter__(self) -> "NodesOnLoopback":
        self._process.start()
        self.address = self._ask("head")
        for _ in range(self._nodes):
            self.add()
        return self

    def __exit__(self, *_: object) -> None:
        self._ask("end")
        self._process.join(30)
        self._scratch.cleanup()

    @property
    def pid(self) -> int:
        """The process that all processes of the cluster descend from."""
        assert self._process.pid
        return self._process.pid

    def add(self) -> None:
        """One node more; returns when it is there."""
        self._ask("add", self._resources)

    def kill(self, number: int) -> None:
        """SIGKILL to all processes of a node; of those that are there the oldest is number 0."""
        self._ask("kill", number)

    def _ask(self, what: str, *of: Any) -> Any:
        self._pipe.send((what, *of))
        if not self._pipe.poll(120):
            raise TimeoutError(f"the cluster does not answer to '{what}'")
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def path_of_workers() -> str:
    """Where Ray's workers, who are handed what is here, look for modules first."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))


def _serve(pipe: Connection, scratch: str) -> None:
    """The process that keeps the cluster."""
    # Ray would have its workers wait for all else on a machine that has more to do.
    os.environ |= {"RAY_TMPDIR": scratch, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
    os.environ["PYTHONPATH"] = path_of_workers()
    os.makedirs(f"{scratch}/ray")  # where Ray notes the address of the last cluster, for those who ask for any
    from ray.cluster_utils import Cluster

    cluster, nodes = Cluster(), []
    while True:
        try:
            what, *of = pipe.recv()
        except EOFError:  # whoever wanted the cluster is no more
            cluster.shutdown()
            return
        try:
            answer: Any = None
            if what == "head":
                cluster.add_node(num_cpus=0, include_dashboard=False, _system_config=HEALTH, **_common(scratch))
                answer = cluster.address
            elif what == "add":
                nodes.append(cluster.add_node(**of[0], **_common(scratch)))
            elif what == "kill":
                cluster.remove_node(nodes.pop(of[0]), allow_graceful=False)
            else:
                cluster.shutdown()
        except Exception as error:
            answer = error
        pipe.send(answer)
        if what == "end":
            return


def _common(scratch: str) -> dict[str, Any]:
    return {"node_ip_address": "127.0.0.1", "temp_dir": scratch, "object_store_memory": 80 * 2**20}

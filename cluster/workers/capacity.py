"""How many workers fit on a Ray cluster."""

from typing import Any

from efface.cluster.workers.worker import WorkerContext
from efface.errors import UserError


def capacity(context: WorkerContext) -> int:
    """How many workers fit on the cluster now. Raises UserError where it is not one."""
    import ray

    need, total = required_resources(context), ray.cluster_resources()
    for name, amount in need.items():
        most = max((node["Resources"].get(name, 0) for node in _nodes()), default=0)
        if amount > most:
            raise UserError(
                f"a worker needs {amount:g} {name}, and no node of the cluster has more than {most:g} "
                f"(the whole cluster: {total.get(name, 0):g}); lower resources in the campaign"
            )
    capacity = min(total_slots(context), free_slots(context))
    if capacity < 1:
        free = ray.available_resources()
        raise UserError(
            f"a worker needs {describe_resources(need)}, and all of the cluster is taken (free: "
            f"{describe_resources({name: free.get(name, 0.0) for name in need})}); wait for it, or stop what runs there"
        )
    return capacity


def total_slots(context: WorkerContext) -> int:
    """Workers that fit on all nodes together, if nothing else runs there."""
    need = {name: amount for name, amount in required_resources(context).items() if amount}
    return sum(min(int(node["Resources"].get(name, 0) // need[name]) for name in need) for node in _nodes())


def free_slots(context: WorkerContext) -> int:
    """Workers for which enough is free, taking all nodes together."""
    import ray

    free = ray.available_resources()
    return min(int(free.get(name, 0) // amount) for name, amount in required_resources(context).items() if amount)


def required_resources(context: WorkerContext) -> dict[str, float]:
    return {"CPU": float(context.cpus), "GPU": context.gpus}


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def describe_resources(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount) or "nothing"

"""`python -m efface.launch.clusters.wait_for_ray ADDRESS NODES`: wait until the Ray at ADDRESS has NODES nodes."""

import sys
import time

from efface.cluster.workers.ray_probe import answers

TIMEOUT_SECONDS = 300
"""Seconds; a container image may have to be fetched first."""


def wait_for_nodes(address: str, nodes: int, timeout: float = TIMEOUT_SECONDS) -> bool:
    """Whether the Ray at `address` has `nodes` living nodes within `timeout` seconds."""
    import ray

    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            if not ray.is_initialized():
                host, port = address.rsplit(":", 1)
                if not answers(host, int(port), deadline - time.monotonic()):
                    break  # Ray itself would try on for ten minutes
                ray.init(address=address, logging_level="CRITICAL", log_to_driver=False)
            if sum(node["Alive"] for node in ray.nodes()) >= nodes:
                return True
        except (ConnectionError, RuntimeError):
            ray.shutdown()
        time.sleep(1)
    return False


if __name__ == "__main__":
    if not wait_for_nodes(sys.argv[1], int(sys.argv[2])):
        sys.exit(f"efface: no Ray of {sys.argv[2]} node(s) came up at {sys.argv[1]} within {TIMEOUT_SECONDS} seconds")

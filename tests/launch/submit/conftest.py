"""What the tests of `efface submit` share: a SLURM of two nodes, where one can be."""

from collections.abc import Iterator

import pytest
from slurm_cluster import SlurmCluster, skip_reason


@pytest.fixture(scope="session")
def slurm_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    reason = skip_reason()
    if reason:
        pytest.skip(f"no SLURM here: {reason}")
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()


@pytest.fixture
def slurm(slurm_nodes: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The cluster, idle, with its commands on the PATH."""
    for name, value in slurm_nodes.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield slurm_nodes
    for job in slurm_nodes.run_command("squeue", "--noheader", "--format=%A").split():
        slurm_nodes.run_command("scancel", job)
    slurm_nodes.wait(slurm_nodes.empty, 60)
    for node in {
        *slurm_nodes.run_command("sinfo", "--noheader", "--states=down,drain", "--Node", "--format=%N").split()
    }:
        slurm_nodes.run_command("scontrol", "update", f"nodename={node}", "state=resume")

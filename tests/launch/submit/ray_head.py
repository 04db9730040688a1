"""The head of a Ray cluster on loopback, with dashboard and token, on a Python that has all but efface itself."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
import venv
from pathlib import Path


class RayHead:
    """`start`, `kill`, `start` again: another cluster at the same address, which knows nothing of the first."""

    def __init__(self, folder: Path, token_file: Path | None = None, command: str | None = None) -> None:
        """With a token and a command line of its own where none are given; the command gets further options."""
        self.folder = folder
        self.token_file = token_file or folder / "token"
        if token_file is None:
            self.token_file.write_text(os.urandom(32).hex())
        self.port = _free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._python = _environment(folder / "env")
        self._command = command or f"RAY_AUTH_MODE=token {self._python} -m ray.scripts.scripts start --head"
        self._process: subprocess.Popen[bytes] | None = None
        # Sockets have a limit of 107 characters to their paths.
        self._scratch = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)

    def start(self) -> None:
        here = {
            "PATH": f"{Path(self._python).parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "AUTOSCALER_METRIC_PORT": str(_free_port()),
            "DASHBOARD_METRIC_PORT": str(_free_port()),
            "OMP_NUM_THREADS": "1",
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON"))}
        options = [
            *("--block", "--disable-usage-stats", "--num-cpus=1", f"--temp-dir={self._scratch.name}"),
            *("--node-ip-address=127.0.0.1", f"--port={_free_port()}", f"--dashboard-port={self.port}"),
            *(f"--ray-client-server-port={_free_port()}", "--min-worker-port=0", "--max-worker-port=0"),
            *("--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0", "--runtime-env-agent-port=0"),
            *("--node-manager-port=0", "--object-manager-port=0", "--metrics-export-port=0"),
        ]
        with (self.folder / "ray.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", f"{self._command} {shlex.join(options)}"],
                env={**kept, **here},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < end, (self.folder / "ray.log").read_text()[-3000:]
            time.sleep(0.2)

    def kill(self) -> None:
        """As when the head node is lost: every process of the cluster at once."""
        if self._process is None:
            return
        for process in _cluster_processes(self._scratch.name):
            os.kill(process, signal.SIGKILL)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def jobs_as_text(self) -> str:
        """All that the cluster tells of its jobs to those who may ask."""
        request = urllib.request.Request(
            f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {self.token_file.read_text().strip()}"}
        )
        return str(urllib.request.urlopen(request, timeout=20).read().decode())

    def jobs(self) -> list[object]:
        return list(json.loads(self.jobs_as_text()))

    def install_efface(self) -> None:
        """Give the cluster's Python the efface of this checkout."""
        site = next((self.folder / "env" / "lib").glob("python*/site-packages"))
        (site / "efface.pth").write_text(f"{Path(__file__).resolve().parents[3]}\n")

    def listening_addresses(self) -> list[str]:
        """Addresses at which processes of the cluster listen."""
        mine = {f"pid={number}," for number in _cluster_processes(self._scratch.name)}
        lines = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
        return [line.split()[3] for line in lines if any(number in line for number in mine)]

    def _answers(self) -> bool:
        try:
            return self.jobs_as_text() == "[]"
        except OSError:
            return False


def _cluster_processes(scratch: str) -> list[int]:
    """Processes that name the cluster's folder in their command or are children of one that does."""
    import psutil

    found: dict[int, None] = {}
    for process in psutil.process_iter():
        try:
            if scratch in " ".join(process.cmdline()):
                found.update({process.pid: None, **{child.pid: None for child in process.children(recursive=True)}})
        except psutil.Error:
            continue
    return list(found)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(folder: Path) -> str:
    """A Python with all that this one has, but for efface."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    completed = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True, check=True
    )
    (Path(completed.stdout.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return str(python)

"""A run folder in an object store, a real S3 server on this machine: the campaign, bytes and verbs of one on a disk."""

import io
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_worker import FakeWorker
from rich.console import Console
from tiny_search import UCE, MakeSearch

from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, execute, open_run, reopen_run
from efface.cluster.search.search import run_search
from efface.cluster.storage.lease import Lease
from efface.cluster.storage.remaining import remaining_tasks
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.judging import IMAGES, VERDICTS, Shard
from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.tasks.task import Task
from efface.errors import Stopped, StorageError, UserError
from efface.eval.judging.image_table import read_table
from efface.files import as_path, create_exclusive, local_copy, write_atomic
from efface.launch.cli import main
from efface.train.data.rollout_store import RolloutStore

s3fs = pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")

MakeCampaign = Callable[..., Campaign]


@pytest.fixture(autouse=True)
def _no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efface.storage_retry.RETRY_SECONDS", 0.0)


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """The URL of a bucket in an S3 server that listens on loopback alone."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def nowhere(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a bucket in a store that is out of reach: nobody listens at its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    yield store
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def fresh(store: str, request: pytest.FixtureRequest) -> str:
    """The URL of a run folder that is not there yet."""
    return f"{store}/{request.node.name.replace('[', '-').strip(']')}"


RunEfface = Callable[..., tuple[int, str, str]]


@pytest.fixture
def efface(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunEfface:
    """A function that runs `efface` with these arguments in this process; exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["efface", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
            sys.exit(0)
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


def run_here(run: Run, worker: Any = FakeWorker) -> None:
    execute(run, 0, None, Console(file=io.StringIO()), worker)


def contents(root: Path) -> dict[str, bytes]:
    """What must be the same wherever a campaign was run."""
    kept = [path for path in root.rglob("*") if path.suffix in (".parquet", ".safetensors", ".png")]
    return {"/".join(path.relative_to(root).parts): path.read_bytes() for path in kept}


def upload(folder: Path, url: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            write_atomic(as_path(url) / str(path.relative_to(folder)), path.read_bytes())


# files


def test_what_is_not_there_is_distinguished_from_a_store_that_is_away(fresh: str) -> None:
    path = as_path(fresh)
    assert not path.exists() and not path.is_dir() and not (path / "file").is_file()
    with pytest.raises(FileNotFoundError):
        (path / "file").read_bytes()
    write_atomic(path / "folder" / "file", b"content")
    assert path.is_dir() and not path.is_file() and (path / "folder" / "file").is_file()
    assert [p.name for p in path.iterdir()] == ["folder"] and (path / "folder" / "file").stat().st_size == 7
    (path / "folder" / "file").unlink()
    (path / "folder" / "file").unlink(missing_ok=True)
    assert not path.exists()


@pytest.mark.parametrize(
    "ask",
    [
        lambda path: path.exists(),
        lambda path: path.is_file(),
        lambda path: path.is_dir(),
        lambda path: path.stat(),
        lambda path: path.read_bytes(),
        lambda path: list(path.iterdir()),
        lambda path: list(path.rglob("*")),
        lambda path: list(path.glob("*.json")),
        lambda path: path.unlink(missing_ok=True),
        lambda path: write_atomic(path, b""),
        lambda path: create_exclusive(path, b""),
        lambda path: Lease(path).__enter__(),
        lambda path: local_copy(path).__enter__(),
        lambda path: RunFolder(path).stop_request(),
        lambda path: RunFolder(path).must_exist(),
    ],
)
def test_a_store_that_is_away_is_never_taken_for_an_empty_one(ask: Callable[[Path], Any], nowhere: str) -> None:
    with pytest.raises(StorageError, match=r"s3://bucket/run.*Could not connect") as error:
        ask(as_path(f"{nowhere}/run"))
    assert "\n" not in str(error.value)


CREATE = """
import sys
from efface.files import as_path, create_exclusive
path = as_path(sys.argv[1])
path.exists()
print("here", flush=True)
sys.stdin.readline()
print(create_exclusive(path, sys.argv[2].encode()))
"""


def test_of_several_processes_that_create_an_object_at_once_one_succeeds(fresh: str) -> None:
    command = [sys.executable, "-c", CREATE, f"{fresh}/file"]
    processes = [
        subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    assert all(process.stdout and process.stdout.readline() == "here\n" for process in processes)
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate()[0] for process in processes]
    assert sorted(answers) == ["False\n", "False\n", "True\n"]
    assert as_path(f"{fresh}/file").read_bytes() == str(answers.index("True\n")).encode()


# leases


def test_a_lease_in_a_store_is_held_by_one_and_then_free(fresh: str) -> None:
    root = as_path(fresh)
    for number in (1, 2, 3):
        with Lease(root) as lease:
            with pytest.raises(UserError, match=f"process {os.getpid()}"), Lease(root):
                raise AssertionError("two hold it")
            assert (root / "leases" / f"{number:08d}.json").is_file()
        assert lease.lost is None


def test_a_lease_in_a_store_goes_over_when_its_driver_elsewhere_beats_no_more(fresh: str) -> None:
    root = as_path(fresh)
    driver = {"host": "elsewhere", "boot": "b", "namespaces": "pid:[1]", "pid": 1, "started": "1"}
    lease = {"id": "theirs", "driver": driver, "heartbeat": 3}
    write_atomic(root / "leases" / "00000001.json", json.dumps(lease).encode())
    with Lease(root, heartbeat=0.1, heartbeat_timeout=0.5):
        assert {path.name for path in (root / "leases").iterdir()} == {"00000002.json"}


# caches


def test_rollouts_in_a_store_are_found_again_and_stay_within_their_bytes(fresh: str) -> None:
    held = RolloutStore(as_path(f"{fresh}/rollouts"), most_bytes=2500)
    held.close()
    for number in range(4):
        held.put(str(number), {"x": torch.full((256,), float(number))})
        found = held.get(str(number))
        assert found is not None and found["x"].tolist() == 256 * [float(number)]
    held.close()
    assert held.get("unknown") is None
    assert sum(path.stat().st_size for path in as_path(f"{fresh}/rollouts").iterdir()) <= 2500


# campaigns


def test_a_campaign_in_a_store_comes_to_the_bytes_of_one_on_a_disk(
    efface: RunEfface, campaign_file: Callable[..., Path], fresh: str, finished: Path
) -> None:
    code, out, err = efface("run", campaign_file(), "--out", fresh, "--workers", 0)
    assert code == 0, err
    assert "esd" in out and f"{fresh}/table.parquet" in out
    there, here = contents(as_path(fresh)), contents(finished)
    assert there == here and len(here) > 20
    assert json.loads((as_path(fresh) / "scores.json").read_bytes())["methods"]

    code, out, err = efface("run", campaign_file(), "--out", fresh, "--workers", 0)
    assert code == 0 and "esd" in out, err
    opened = reopen_run(as_path(fresh))
    assert opened.remaining_tasks.is_empty and len(list(opened.folder.logs.iterdir())) == 1


@pytest.fixture
def copied(finished: Path, fresh: str, campaign: MakeCampaign) -> Run:
    """The finished campaign as a run in the store."""
    upload(finished, fresh)
    return open_run(campaign(), as_path(fresh))


def test_what_is_uploaded_is_as_finished_as_it_was(copied: Run) -> None:
    assert copied.remaining_tasks.is_empty


def test_an_object_that_is_gone_or_changed_is_made_again_as_it_was(copied: Run, finished: Path) -> None:
    from efface.cluster.workers.worker import Worker

    folder, (base, uce, esd) = copied.folder, copied.plan.models
    folder.output(copied.plan.shards[base.id][0], IMAGES).unlink()
    delta = folder.delta(uce)
    write_atomic(delta, delta.read_bytes()[:-1])
    verdicts = folder.output(copied.plan.shards[esd.id][1], VERDICTS)
    data = bytearray(verdicts.read_bytes())
    data[len(data) // 2] ^= 1
    write_atomic(verdicts, bytes(data))  # as large as before: only its bytes tell
    run_here(copied, Worker)
    assert contents(folder.root) == contents(finished)


def test_the_verbs_take_urls(efface: RunEfface, copied: Run, fresh: str) -> None:
    job = copied.plan.jobs[0]
    code, out, err = efface("status", fresh)
    assert code == 0 and out == "tiny: jobs 2/2, images 42/42\n  nobody is at work on it\n", err
    write_atomic(copied.folder.log(job), b"what the training printed\n")
    code, out, err = efface("logs", fresh, job.id[:8])
    assert code == 0 and "what the training printed" in out, err
    write_atomic(copied.folder.checkpoint(job), b"x" * 1000)
    code, out, err = efface("gc", fresh, "--dry-run")
    assert code == 0 and "1,000 bytes  checkpoints of finished jobs" in out, err
    assert copied.folder.checkpoint(job).is_file()
    assert efface("gc", fresh)[0] == 0
    assert not copied.folder.checkpoint(job).is_file() and copied.remaining_tasks.is_empty
    code, out, err = efface("retry", fresh)
    assert code == 2 and "no job of this run has failed" in err
    code, out, err = efface("plan", copied_campaign(copied), "--out", fresh, "--json")
    assert json.loads(out)["left"] == {"jobs": 0, "shards": 0, "images": 0}, err
    code, out, err = efface("cancel", fresh)
    assert code == 0 and "nobody is at work on it" in out and copied.folder.stop_request()


def copied_campaign(run: Run) -> Path:
    """The campaign of a run as a local file."""
    path = Path(os.environ["EFFACE_CACHE"]) / "campaign.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(run.folder.campaign.read_bytes())
    return path


def test_scores_are_recomputed_from_a_url(efface: RunEfface, copied: Run, fresh: str) -> None:
    code, out, err = efface("score", fresh, "--method", "uce", "--json")
    assert code == 0, err
    scores = json.loads(out)
    del scores["difference"]  # to the best method of the table, which `scores.json` has apart
    assert scores == json.loads((as_path(fresh) / "scores.json").read_bytes())["methods"]["uce"]


def test_a_table_is_read_from_a_url(copied: Run, finished: Path) -> None:
    assert read_table(copied.folder.table) == read_table(finished / "table.parquet")


@pytest.mark.parametrize("command", ["run", "plan", "status", "retry", "gc", "cancel"])
def test_a_store_out_of_reach_is_answered_in_a_sentence(
    command: str, efface: RunEfface, campaign_file: Callable[..., Path], nowhere: str
) -> None:
    ask = [campaign_file(), "--out", f"{nowhere}/run"] if command in ("run", "plan") else [f"{nowhere}/run"]
    code, out, err = efface(command, *ask)
    assert code == 75 and err.startswith("efface: s3://bucket/run") and err.count("\n") == 1
    assert "Could not connect" in err and "Traceback" not in out + err


def test_a_store_lost_on_the_way_stops_the_run_and_fails_nothing(
    campaign: MakeCampaign, fresh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(campaign(), as_path(fresh))
    away: list[bool] = []
    really = s3fs.S3FileSystem._call_s3

    async def call(self: Any, *arguments: Any, **more: Any) -> Any:
        if away:
            raise ConnectionResetError("connection reset")
        return await really(self, *arguments, **more)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)

    class Unlucky(FakeWorker):
        def run(self, task: Any) -> Any:
            if getattr(task, "index", 0) == 1:
                away.append(True)
            return super().run(task)

    with pytest.raises(StorageError, match="connection reset"):
        run_here(run, Unlucky)
    away.clear()
    remaining = run.remaining_tasks
    assert remaining.shards and not remaining.failed and not run.folder.failures(run.plan.models)


def test_a_worker_that_cannot_read_its_store_lays_blame_on_the_store(
    campaign: MakeCampaign, fresh: str, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    from efface.cluster.run import worker_context
    from efface.cluster.workers.worker import Worker

    upload(finished, fresh)
    run = open_run(campaign(), as_path(fresh))
    worker = Worker(worker_context(run))

    async def call(self: Any, *arguments: Any, **more: Any) -> Any:
        raise ConnectionResetError("connection reset")

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)
    for task in (*run.plan.trainings, *run.plan.shards[run.plan.jobs[0].id], *run.plan.calibrations):
        assert worker.run(task).state == "storage"


@pytest.mark.slow
def test_workers_of_a_ray_cluster_share_a_run_in_a_store(campaign: MakeCampaign, fresh: str, finished: Path) -> None:
    run = open_run(campaign(), as_path(fresh))
    execute(run, 2, None, Console(file=io.StringIO()))
    assert contents(run.folder.root) == contents(finished)
    assert not remaining_tasks(run.plan, run.folder).failed


def test_a_search_in_a_store_goes_on_where_it_was_stopped_and_comes_to_the_same(
    store: str, search: MakeSearch, tmp_path: Path
) -> None:
    wanted, root = search(**UCE, trials=2), f"{store}/search"

    class Stopping(FakeWorker):
        def run(self, task: Task) -> Outcome:
            outcome = super().run(task)
            if isinstance(task, Shard) and task.model.job:
                self.folder.request_stop()
            return outcome

    def rows(out: str | Path, worker: type[FakeWorker] = FakeWorker) -> list[Any]:
        found = run_search(wanted, out, None, 0, None, Console(file=io.StringIO()), worker).rows
        return [(row.point, row.ended, row.result.state, row.result.scores) for row in found]

    with pytest.raises(Stopped):
        rows(root, Stopping)
    assert as_path(f"{root}/study.jsonl").is_file() and not as_path(f"{root}/pareto.json").is_file()
    assert rows(root) == rows(tmp_path / "search")
    assert as_path(f"{root}/pareto.json").is_file() and as_path(f"{root}/trials.csv").is_file()

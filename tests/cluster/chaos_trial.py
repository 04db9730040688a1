"""A trial: a campaign is run while things go wrong, taken up again until it is done, and held to what it must be.

What must be is computed without any run (`tests/fake_worker.py.expected`), or comes from a run that was
let alone.
"""

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from chaos_cluster import NodesOnLoopback
from chaos_disturbances import REFUSED, TRY_AGAIN, Disturbance, sample_disturbances
from chaos_driver import Driver, DriverConfig
from chaos_scene import Scene, Undisturbed, count_lines, disk, results
from fake_worker import STEPS, expected

from efface.cluster.campaign.planner import plan_campaign
from efface.cluster.campaign.spec import read_campaign
from efface.cluster.run import reopen_run, worker_context
from efface.errors import UserError
from efface.eval.judging.image_table import read_table

CONCEPTS = ("cat", "dog", "bus", "tulip", "neon")
METHODS = ("{method: uce, preset: miniature}", "{method: esd, preset: miniature, label: esd-x}")
REAL_METHODS = (METHODS[0], "{method: esd, preset: miniature, label: esd-x, config: {steps: 6}}")

REAL_RECIPE = """
name: chaos
scheduler: ddim
steps: 2
guidance_scale: 5
height: 64
width: 64
batch_size: 8
"""
"""The miniature's recipe cut to two steps, which show as well as twenty whether two runs come to the same."""

DRIVER_TIMEOUT = 600.0
"""Seconds after which a driver is taken to hang."""


@dataclass(frozen=True)
class SampledCampaign:
    """What a campaign is cut down to."""

    overrides: tuple[str, ...]
    checkpoint_steps: int
    job_seconds: float
    shard_seconds: float


def sample_campaign(generator: random.Random, recipe: Path | None) -> SampledCampaign:
    """A small campaign of the miniature that can be planned; `recipe`: of real runs."""
    real = recipe is not None
    while True:
        steps = generator.randint(1, 3 if real else 7)
        targets = generator.sample(CONCEPTS[:3] if real else CONCEPTS, 2 if real else generator.randint(1, 3))
        methods = REAL_METHODS if real else generator.sample(METHODS, generator.randint(1, 2))
        overrides = (
            f"strategy={generator.choice(['single', 'single', 'multi', 'continual'])}",
            f"concepts.targets=[{', '.join(targets)}]",
            f"methods=[{', '.join(methods)}]",
            f"seeds={[0] if real else generator.choice([[0], [0], [0, 1]])}",
            f"evaluation.images_per_prompt={1 if real else generator.choice([1, 1, 2])}",
            "evaluation.prompts_per_concept={forget: 1, indirect: 1, adversarial: 1, adjacent: 1, retain: 1}",
            f"evaluation.shard_size={generator.choice([8, 13, 64])}",
            f"limits.checkpoint_steps={steps}",
            *([f"evaluation.recipe={recipe}"] if real else []),
        )
        try:
            plan_campaign(read_campaign("demo", list(overrides)))
        except UserError:
            continue
        return SampledCampaign(overrides, steps, generator.uniform(0, 0.1), generator.choice([0.0, 0.01, 0.03]))


@dataclass
class Report:
    """What a trial came to."""

    number: int
    names: list[str]
    """Of the disturbances, in their order."""
    workers: int
    rows: int = 0
    wrong_rows: int = 0
    """Lost, doubled or different."""
    losses: int = 0
    shards_again: int | None = None
    """None: not counted, for the real worker leaves no line of each step."""
    steps_again: int | None = None
    half_trained: int = 0
    """Starts that left a training half done."""
    refusals: int = 0
    starts: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        where = f"{self.workers} Ray workers" if self.workers else "in process"
        again = f"{self.losses} losses"
        if self.steps_again is not None:
            again += f", {self.shards_again} shards and {self.steps_again} steps again for them"
        verdict = "; ".join(self.wrong) or "ok"
        return (
            f"{self.number:4} {where:14} {' + '.join(self.names):52} {self.starts} starts, {self.rows} rows, {again}, "
            f"{self.seconds:.0f} s: {verdict}"
        )


class ChaosRuns:
    """Trials that share campaigns, what those come to undisturbed, and a cluster."""

    def __init__(self, folder: Path, seed: int, campaigns: int, real: bool = False) -> None:
        """campaigns: how many different ones are sampled."""
        self._folder, self._seed, self._campaigns, self._real = folder, seed, campaigns, real
        self._recipe = folder / "recipe.yaml" if real else None
        if self._recipe:
            self._recipe.write_text(REAL_RECIPE)
        self._cluster: NodesOnLoopback | None = None
        self._known: dict[int, tuple[SampledCampaign, Undisturbed]] = {}

    def __enter__(self) -> "ChaosRuns":
        return self

    def __exit__(self, *_: object) -> None:
        if self._cluster:
            self._cluster.__exit__()

    def run(self, number: int, workers: int, disturbances: Sequence[Disturbance] | None = None) -> Report:
        """Trial `number`, the same each time for one seed. workers: on Ray; 0: in process. Never raises."""
        generator = random.Random(f"{self._seed} {number} {workers}")
        sampled_campaign, undisturbed = self._campaign(generator.randrange(self._campaigns))
        if disturbances is None:
            disturbances = sample_disturbances(generator, workers, self._real)
        report = Report(number, [type(disturbance).__name__ for disturbance in disturbances], workers)
        start = time.monotonic()
        with self._scene(f"{number}-{workers}", generator, sampled_campaign, undisturbed, workers) as scene:
            try:
                for disturbance in disturbances:
                    attempt(scene, disturbance, report)
                attempt(scene, Disturbance(), report)
                self._judge(scene, sampled_campaign, report)
            except Exception as error:
                report.wrong.append(f"{type(error).__name__}: {error}")
        report.seconds = time.monotonic() - start
        return report

    def _campaign(self, index: int) -> tuple[SampledCampaign, Undisturbed]:
        if index not in self._known:
            generator = random.Random(f"{self._seed} campaign {index}")
            campaign = sample_campaign(generator, self._recipe)
            nothing = Undisturbed(0, 0, 0, {})
            with self._scene(f"undisturbed-{index}", generator, campaign, nothing, 0) as scene:
                start = time.monotonic()
                driver = Driver(scene.config)
                code = driver.wait(DRIVER_TIMEOUT)
                assert code == 0, (code, scene.config.output.read_text())
                seconds, effects = time.monotonic() - start, scene.config.effects
                writes = int((scene.folder / "writes.txt").read_text())
                known = Undisturbed(seconds, writes, count_lines(effects) if effects else 0, results(scene.root))
            self._known[index] = (campaign, known)
        return self._known[index]

    @contextmanager
    def _scene(
        self, name: str, generator: random.Random, campaign: SampledCampaign, undisturbed: Undisturbed, workers: int
    ) -> Iterator[Scene]:
        folder = self._folder / name
        folder.mkdir()
        with disk(folder) as mount_point:
            config = DriverConfig(
                root=mount_point / "run",
                output=folder / "output.txt",
                overrides=campaign.overrides,
                effects=None if self._real else folder / "effects.txt",
                job_seconds=campaign.job_seconds,
                shard_seconds=campaign.shard_seconds,
                workers=workers,
                address=self._nodes().address if workers else None,
                writes=folder / "writes.txt",
            )
            yield Scene(folder, generator, config, undisturbed, self._cluster if workers else None)
        shutil.rmtree(folder)

    def _nodes(self) -> NodesOnLoopback:
        if not self._cluster:
            self._cluster = NodesOnLoopback(2, num_cpus=1).__enter__()
        return self._cluster

    def _judge(self, scene: Scene, campaign: SampledCampaign, report: Report) -> None:
        """Hold a finished run to what it must be."""
        run = reopen_run(scene.root)
        found = read_table(run.folder.table)
        if not self._real:
            wanted = expected(run.plan, worker_context(run))
            rows, kept = Counter(map(repr, wanted.to_pylist())), Counter(map(repr, found.to_pylist()))
            report.wrong_rows = ((rows - kept) + (kept - rows)).total()
            if not found.equals(wanted):
                report.wrong.append(f"{report.wrong_rows} rows are lost, doubled or different, or out of order")
            count_again(scene, campaign, report)
        report.rows, report.losses = found.num_rows, scene.losses
        kept_results = results(scene.root)
        wanted_results = {name: of for name, of in scene.undisturbed.results.items() if name not in scene.unlike}
        different = [name for name, content in wanted_results.items() if kept_results.get(name) != content]
        more = kept_results.keys() - scene.undisturbed.results.keys()
        if different or more:
            report.wrong.append(f"not as undisturbed: {', '.join([*different, *more][:3])}")
        failed = [path.parent.name for path in scene.root.glob("jobs/*/failure.json")]
        if failed:
            report.wrong.append(f"marked failed: {', '.join(failed)}")


def attempt(scene: Scene, disturbance: Disturbance, report: Report) -> int | None:
    """Start the driver once and disturb it; its exit code."""
    scene.config.output.unlink(missing_ok=True)
    driver = Driver(replace(scene.config, **disturbance.before(scene)))
    report.starts += 1
    name = type(disturbance).__name__
    try:
        disturbance.during(scene, driver)
    finally:
        code = driver.wait(DRIVER_TIMEOUT)
        output = scene.config.output.read_text() if scene.config.output.exists() else ""
        disturbance.after(scene, code if code is not None else 70)
        look_through_journals(scene)
    if code is None:
        report.wrong.append(f"hangs under {name}")
    elif code not in disturbance.codes:
        report.wrong.append(f"exit code {code} under {name}: {output.strip()[-300:]}")
    if "Traceback" in output:
        report.wrong.append(f"a traceback under {name}: {output.strip()[-300:]}")
    report.half_trained += any(
        not (path.parent / "record.json").exists() for path in scene.root.glob("jobs/*/checkpoint.safetensors")
    )
    if code in (REFUSED, TRY_AGAIN):
        report.refusals += 1
        if sum(line.startswith("efface: ") for line in output.splitlines()) != 1:
            report.wrong.append(f"no single sentence under {name}: {output.strip()[-300:]}")
    if list(scene.root.glob("jobs/*/failure.json")):
        report.wrong.append(f"something is marked failed after {name}")
    return code


def count_again(scene: Scene, campaign: SampledCampaign, report: Report) -> None:
    """Shards and steps that were done more than once, and whether what happened allows for so many."""
    assert scene.config.effects
    done = Counter(scene.config.effects.read_text().splitlines())
    shards = {line: count - 1 for line, count in done.items() if line.startswith("shard") and count > 1}
    steps: Counter[str] = Counter()
    for line, count in done.items():
        if line.startswith("step"):
            steps[line.split()[1]] += count - 1
    report.shards_again, report.steps_again = sum(shards.values()), steps.total()
    plan = reopen_run(scene.root).plan
    folders = {model.id: model.folder for model in plan.models}
    spoilt = {model: scene.spoilt[folder] for model, folder in folders.items()}
    allowed = scene.losses + sum(spoilt.values()) + scene.begun_twice
    if report.shards_again > allowed:
        report.wrong.append(f"{report.shards_again} shards done again, at most {allowed} may be")
    for job, count in steps.items():
        limit = campaign.checkpoint_steps * scene.losses + STEPS * spoilt[job]
        if count > limit:
            report.wrong.append(f"{count} steps of {job} done again, at most {limit} may be")
    missing = [model.id for model in plan.jobs if done[f"step {model.id} {STEPS}"] < 1]
    if missing:
        report.wrong.append(f"never trained: {', '.join(missing)}")


def look_through_journals(scene: Scene) -> None:
    """Count what the drivers since the last look have begun twice, before the journals are damaged themselves."""
    new = [path for path in scene.root.glob("logs/*.jsonl") if path.name not in scene.journals]
    for path in new:
        under_way: Counter[str] = Counter()
        for line in path.read_bytes().splitlines(keepends=True):
            event = json.loads(line) if line.endswith(b"\n") else {}
            if event.get("task") == "judging":
                scene.begun_twice += event["event"] == "started" and under_way[event["id"]] > 0
                under_way[event["id"]] += 1 if event["event"] == "started" else -1
    scene.journals |= {path.name for path in new}

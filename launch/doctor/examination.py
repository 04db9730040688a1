"""The checks of `efface doctor` as a list: each by its name, with the facts that it looks at."""

import os
import resource
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from efface.errors import UserError
from efface.launch.doctor import checks, facts
from efface.launch.doctor.check import CheckResult

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Plan
    from efface.cluster.campaign.spec import Campaign


class Subject:
    """What is examined: this machine, and a campaign it should be fit for. Facts are gathered when a check needs them,
    once."""

    def __init__(self, campaign: str | None) -> None:
        self.campaign = campaign
        self.joins_cluster = bool(os.environ.get("RAY_ADDRESS"))
        self.hub = facts.HubProbe()
        self.hub.start()  # it answers while everything else is looked at

    @cached_property
    def machine(self) -> facts.Machine:
        return facts.Machine()

    @cached_property
    def parsed(self) -> "Campaign":
        """The campaign. Raises UserError."""
        from efface.cluster.campaign.spec import read_campaign

        return read_campaign(self.campaign or "")

    @cached_property
    def planned(self) -> "tuple[Campaign, Plan]":
        """The campaign and its plan. Raises UserError."""
        from efface.cluster.campaign.planner import plan_campaign

        return self.parsed, plan_campaign(self.parsed, fetch=False)

    @property
    def plan(self) -> "Plan | None":
        """The campaign's plan, None where there is none; why is a finding of its own."""
        try:
            return self.planned[1] if self.campaign is not None else None
        except Exception:
            return None

    @property
    def requests_gpus(self) -> bool:
        try:
            return self.campaign is not None and self.parsed.resources.gpus > 0
        except UserError:
            return False  # why it cannot be read is a finding of its own

    @property
    def prefetch_command(self) -> str:
        return f"efface prefetch {shlex.quote(self.campaign or '')}"


@dataclass(frozen=True)
class Check:
    """A check by its name; for_campaign: only where a campaign was named."""

    name: str
    look: Callable[[Subject], CheckResult]
    for_campaign: bool = False


def run_checks(campaign: str | None) -> Iterator[CheckResult]:
    """Every finding; with a campaign also whether it fits. Raises nothing: a check that breaks is a finding too."""
    subject = Subject(campaign)
    for check in CHECKS:
        if check.for_campaign and campaign is None:
            continue
        if check.name == "gpu memory" and subject.plan is None:
            continue  # why there is no plan is a finding already
        try:
            yield check.look(subject)
        except UserError as error:
            yield CheckResult(check.name, "problem", str(error), f"correct the {check.name}")
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            yield CheckResult(check.name, "warning", f"could not be checked ({reason})", "check it by hand")


def _gpus(subject: Subject) -> CheckResult:
    machine = subject.machine
    return checks.cuda(machine.torch, machine.driver, machine.gpus, subject.requests_gpus)


def _ray_tokens(subject: Subject) -> CheckResult:
    mode = os.environ.get("RAY_AUTH_MODE")
    version = facts.installed_version("ray")
    return checks.ray_tokens(version, mode, facts.has_ray_token(), subject.joins_cluster)


def _campaign(subject: Subject) -> CheckResult:
    plan = subject.planned[1]
    return CheckResult("campaign", "ok", f"{len(plan.jobs)} jobs, {plan.images} images")


def _gpu_memory(subject: Subject) -> CheckResult:
    from efface.launch.doctor.gpu_memory import estimate_gpu_memory, gpu_at_hand
    from efface.models.files.model_files import NotCached
    from efface.train.cost.memory import RESERVED_BYTES

    campaign, plan = subject.planned
    prefetch = subject.prefetch_command
    if not campaign.resources.gpus:
        return CheckResult("gpu memory", "ok", "the campaign asks for no GPU")
    try:
        estimate = estimate_gpu_memory(campaign, plan, gpu_at_hand())
    except NotCached as error:
        return CheckResult("gpu memory", "warning", f"not known before the base is fetched ({error})", prefetch)
    return checks.gpu_memory(campaign.resources.gpus, estimate, subject.machine.gpus, RESERVED_BYTES, prefetch)


def _disk(subject: Subject) -> CheckResult:
    needed = _bytes_to_write(subject.plan) if subject.plan else None
    return checks.disk(facts.free_bytes(".") or 0, needed)


def _hub(subject: Subject) -> CheckResult:
    from huggingface_hub import constants

    from efface.launch.model_downloads import missing_sources

    missing = missing_sources([subject.campaign]) if subject.plan and subject.campaign else []
    return checks.hub(constants.HF_HUB_OFFLINE, constants.ENDPOINT, subject.hub.wait(), missing)


CHECKS = (
    Check("versions", lambda _: checks.versions(*facts.package_versions())),
    Check("gpus", _gpus),
    Check("xformers", lambda subject: checks.xformers(subject.machine.torch, facts.xformers_build())),
    Check("nccl", lambda subject: checks.nccl(len(subject.machine.gpus), subject.machine.nccl)),
    Check("port", lambda subject: checks.port(facts.ports(), subject.joins_cluster)),
    Check("shared memory", lambda _: checks.shared_memory(facts.free_bytes("/dev/shm"))),
    Check("open files", lambda _: checks.open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])),
    Check("ray tokens", _ray_tokens),
    Check("token files", lambda _: checks.token_files(facts.token_files())),
    Check("ray here", lambda subject: checks.ray_here(facts.ray_processes(), subject.joins_cluster)),
    Check("campaign", _campaign, for_campaign=True),
    Check("gpu memory", _gpu_memory, for_campaign=True),
    Check("disk", _disk),
    Check("hub", _hub),
)


def _bytes_to_write(plan: "Plan") -> int | None:
    """At most: deltas in fp32, and images that do not compress at all. None where the base's shapes are not known."""
    from efface.launch.doctor.gpu_memory import methods
    from efface.models.files.model_files import NotCached
    from efface.models.shapes import model_shapes
    from efface.train.cost.flops import trained_weights

    images = plan.images * plan.recipe.height * plan.recipe.width * 3
    try:
        size = model_shapes(plan.base)
    except NotCached:
        return None
    numbers = {
        label: sum(parameter.numel() for parameter in trained_weights(method, size)[1].values())
        for label, method in methods(plan).items()
    }
    return images + 4 * sum(numbers[model.label] for model in plan.jobs)

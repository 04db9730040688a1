"""From what a user requests, a campaign or some deltas, to the plan that does it."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from efface.cluster.campaign.plan import Plan, make_plan
from efface.cluster.campaign.sharding import Look
from efface.cluster.campaign.spec import Campaign, DeltaEvaluation, MethodChoice
from efface.cluster.campaign.sweep import variants
from efface.cluster.tasks.model import BASE, NOT_FETCHED, Model
from efface.concepts.concept import Concept, ConceptSet, load_concept_set
from efface.config_files import parse
from efface.errors import UserError
from efface.files import file_stem
from efface.models.base import BaseSpec, read_base
from efface.models.base import base_id as fingerprint_of
from efface.models.delta import Delta
from efface.models.files.model_files import NotCached
from efface.train.job import Job, make_job
from efface.train.method import ClosedFormMethod, MethodConfig, TrainingConfig, get_method, parse_config


def plan_campaign(campaign: Campaign, fetch: bool = True) -> Plan:
    """Expand a campaign. Raises UserError for whatever in it cannot be: names, config fields, missing prompts.

    A base that is only on the hub is fetched for its fingerprint; without `fetch` the plan is provisional then.
    """
    from efface.train.trainer.options import TrainingOptions

    parse(
        TrainingOptions,
        campaign.training | ({"tracker_folder": "curves"} if campaign.training.get("tracker") else {}),
        "training",
    )
    base = read_base(campaign.base)
    concept_set = load_concept_set(campaign.concepts.set or base.concepts or _no_concepts(base, "concepts.set"))
    everything = (campaign.concepts.targets, *(choice.targets for choice in campaign.methods if choice.targets))
    targets = tuple(dict.fromkeys(target for names in everything for target in _targets(campaign, names, concept_set)))
    base_id = _base_id(base, fetch)
    models = list(_jobs(campaign, base, base_id, concept_set))
    return make_plan(
        campaign.name,
        base,
        base_id,
        concept_set,
        targets,
        models,
        campaign.evaluation,
        campaign.resources,
        campaign.attacks,
    )


def plan_deltas(
    deltas: Sequence[tuple[Path, Delta]],
    evaluation_config: DeltaEvaluation,
    looks: Sequence[Look] = (),
    fetch: bool = True,
) -> Plan:
    """The plan that judges deltas which exist, the same in whatever order; looks: as in `cut_shards`.

    Raises UserError where they fit neither base nor concept set. fetch: as in `plan_campaign`.
    """
    base = read_base(evaluation_config.base)
    base_id = _base_id(base, fetch)
    concept_set = load_concept_set(evaluation_config.concepts or base.concepts or _no_concepts(base, "--concepts"))
    models = []
    for path, delta in deltas:
        if "job" not in delta.provenance:
            raise UserError(f"{path}: names no job, so it is not known which concepts it should have forgotten")
        job = parse(Job, delta.provenance["job"], str(path))
        if base_id not in (job.base_id, NOT_FETCHED):
            raise UserError(f"{path}: was made from base '{job.base}' ({job.base_id[:16]}), not from '{base.name}'")
        models.append(Model(job.method, job, base_id, delta_id=delta.id))
    named = sorted({name for model in models if model.job for name in model.job.concepts})
    targets = tuple(map(concept_set.find, named))
    return make_plan(
        "evaluation",
        base,
        base_id,
        concept_set,
        targets,
        models,
        evaluation_config.evaluation,
        evaluation_config.resources,
        looks=looks,
    )


def _base_id(base: BaseSpec, fetch: bool) -> str:
    """`NOT_FETCHED` where the base is not on this machine and is not to be fetched."""
    try:
        return fingerprint_of(base, fetch)
    except NotCached:
        return NOT_FETCHED


def _no_concepts(base: BaseSpec, field: str) -> str:
    raise UserError(f"base '{base.name}' names no concept set, so {field} must be given")


def _targets(
    campaign: Campaign, names: Literal["all"] | tuple[str, ...], concept_set: ConceptSet
) -> tuple[Concept, ...]:
    if names == "all":
        return concept_set.concepts
    try:
        targets = tuple(map(concept_set.find, names))
    except UserError as error:
        raise UserError(f"campaign '{campaign.name}', concepts.targets: {error}") from None
    if not targets:
        raise UserError(
            f"campaign '{campaign.name}': concepts.targets is empty, should name concepts of '{concept_set.name}'"
        )
    duplicate = next((target.name for target in targets if targets.count(target) > 1), None)
    if duplicate:
        raise UserError(f"campaign '{campaign.name}': concepts.targets names '{duplicate}' twice")
    return targets


def _jobs(campaign: Campaign, base: BaseSpec, base_id: str, concept_set: ConceptSet) -> Iterator[Model]:
    labels = {file_stem(BASE): BASE}
    for choice in campaign.methods:
        names = [each.name for each in _targets(campaign, choice.targets or campaign.concepts.targets, concept_set)]
        if choice.label is not None and not choice.label.strip():
            raise UserError(
                f"campaign '{campaign.name}', method '{choice.method}': the label is empty, should be a name"
            )
        strategies = choice.strategies or (campaign.strategy,)
        for (config, swept), strategy in itertools.product(_variants(campaign, choice), strategies):
            label = _label(choice.label or choice.method, swept)
            if len(strategies) > 1 and strategy != "single":
                label = f"{label}-{strategy}"
            stem = file_stem(label)
            if stem in labels:
                alike = f"'{label}'" if labels[stem] == label else f"'{labels[stem]}' and '{label}', which share files"
                raise UserError(
                    f"campaign '{campaign.name}': two methods are called {alike}, give one a label of its own"
                )
            labels[stem] = label
            with _error_context(campaign, choice):
                parsed = parse_config(choice.method, config, choice.preset)
            _check_shares(campaign, label, parsed)
            resolved = parsed.model_dump(mode="json")
            make = partial(make_job, base.name, base_id, choice.method, concept_set, config=resolved, strategy=strategy)
            closed_form = issubclass(get_method(choice.method), ClosedFormMethod)
            if strategy == "continual":
                for seed in campaign.seeds:
                    yield from _chain(label, partial(make, seed=seed), names, closed_form)
            else:
                groups = [[name] for name in names] if strategy == "single" else [names]
                for group, seed in itertools.product(groups, campaign.seeds):
                    yield Model(label, make(group, seed=seed), base_id, closed_form=closed_form)


def _check_shares(campaign: Campaign, label: str, config: MethodConfig) -> None:
    """Raises UserError where the batches of an optimiser step cannot be shared out evenly."""
    processes = campaign.resources.processes
    if isinstance(config, TrainingConfig) and config.gradient_accumulation_steps % processes:
        raise UserError(
            f"campaign '{campaign.name}', method '{label}': {processes} processes share the batches of a step, so "
            f"gradient_accumulation_steps should be a multiple of {processes}, not {config.gradient_accumulation_steps}"
        )


def _chain(label: str, make: Callable[..., Job], names: Sequence[str], closed_form: bool) -> Iterator[Model]:
    """The models of a chain of requests, each made from the one before."""
    before: Job | None = None
    for stage in range(1, len(names) + 1):
        job = make(names[:stage], parent=before.id) if before else make(names[:stage])
        yield Model(
            stage_label(label, stage, len(names)), job, job.base_id, before.slug if before else None, closed_form
        )
        before = job


def stage_label(label: str, stage: int, stages: int) -> str:
    """What the model after request `stage` of a chain is called in tables; the last one has the method's own name."""
    return label if stage == stages else f"{label} {stage}/{stages}"


def _variants(campaign: Campaign, choice: MethodChoice) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    with _error_context(campaign, choice):
        return list(variants(choice.config, get_method(choice.method).Config, choice.exclude))


@contextmanager
def _error_context(campaign: Campaign, choice: MethodChoice) -> Iterator[None]:
    """An error found in the block says where in the campaign it is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"campaign '{campaign.name}', method '{choice.label or choice.method}': {error}") from None


def _label(name: str, swept: dict[str, object]) -> str:
    return name + "".join(f" {key}={value}" for key, value in swept.items())

"""What is published of a delta, an exported folder or a package: its files, and a model card."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface import __version__
from efface.cluster.package.build import manifest
from efface.cluster.package.card import TEMPLATES, Judgement, front_matter, judgement, templates
from efface.cluster.package.description import DESCRIPTION, MANIFEST
from efface.cluster.package.files_inside import files_inside
from efface.cluster.run_content import read_run
from efface.cluster.storage.records import read_json
from efface.config_files import parse
from efface.errors import UserError
from efface.eval.report.reported_run import RunContent
from efface.files import as_path
from efface.models.base import BaseSpec, read_base
from efface.models.delta import Delta
from efface.models.export import PROVENANCE
from efface.models.files.hub import DELTA_FILE, check_repository
from efface.train.job import Job

CARD = "README.md"
MODEL_INDEX = "model_index.json"


@dataclass(frozen=True)
class Publication:
    """Files by their path in the repository: on this machine, or their bytes."""

    repository: str
    kind: str
    """`delta`, `folder` or `package`."""
    files: Mapping[str, Path | bytes]
    is_judged: bool

    @property
    def card(self) -> str:
        """The text of the model card."""
        data = self.files[CARD]
        return (data if isinstance(data, bytes) else data.read_bytes()).decode()

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {n: len(data) if isinstance(data, bytes) else data.stat().st_size for n, data in self.files.items()}


def publication(source: Path, repository: str, *, run: str | None, base: str | None, licence: str) -> Publication:
    """What is to be published of `source`: a delta, a folder of `efface export`, or one of `efface package`.

    run: a run folder that has judged it, by which the card has scores; a package has its own. base: name or path, where
    the job's own is not known here. Raises UserError where it cannot be published, or the run knows nothing of it.
    """
    check_repository(repository)
    if (source / DESCRIPTION).is_file():
        return _package(source, repository)
    content = read_run(as_path(run), with_images=False) if run else None
    if (source / MODEL_INDEX).is_file():
        return _folder(source, repository, content, base, licence)
    if source.is_dir():
        raise UserError(f"{source}: is no folder of `efface export` or `efface package`; name one, or a delta file")
    delta = Delta.load(source)
    job = _job(delta.provenance, source)
    judged = _judged(content, job, delta.id)
    card = _card(
        repository,
        job,
        judged,
        _base(base or job.base),
        licence,
        delta_id=delta.id,
        is_hook=delta.kind == "hook",
        is_whole=False,
    )
    files: dict[str, Path | bytes] = {CARD: card.encode(), DELTA_FILE: source}
    if delta.kind != "hook":
        files["load_delta.py"] = TEMPLATES / "load_delta.py"
    return Publication(repository, "delta", files, judged is not None)


def _folder(source: Path, repository: str, content: RunContent | None, base: str | None, licence: str) -> Publication:
    written = read_json(source, PROVENANCE)
    if not isinstance(written, dict) or not isinstance(written.get("provenance"), dict):
        raise UserError(
            f"{source}: has no {PROVENANCE} that says what was erased from it; write it with `efface export`"
        )
    job = _job(written["provenance"], source)
    delta_id = str(written.get("delta", ""))
    judged = _judged(content, job, delta_id)
    spec = _base(base or job.base)
    card = _card(repository, job, judged, spec, licence, delta_id=delta_id, is_hook=False, is_whole=True)
    return Publication(repository, "folder", {**_files(source), CARD: card.encode()}, judged is not None)


def _package(source: Path, repository: str) -> Publication:
    """As it is: its README is a model card."""
    listed, found = read_json(source, MANIFEST), manifest(source)
    if listed != found:
        raise UserError(f"{source}: is not as it was packaged; `efface verify {source}` says where")
    return Publication(repository, "package", _files(source), True)


def _files(folder: Path) -> dict[str, Path | bytes]:
    return {**files_inside(folder)}


def _job(provenance: Mapping[str, Any], source: Path) -> Job:
    if not isinstance(provenance.get("job"), dict):
        raise UserError(f"{source}: names no job, so it is not known what was erased, and by which method")
    return parse(Job, provenance["job"], str(source))


def _judged(content: RunContent | None, job: Job, delta_id: str) -> Judgement | None:
    """Of this very model, as a campaign made it or `efface evaluate` was given it. Raises UserError where a run was
    given that did not judge it to the end."""
    if content is None:
        return None
    found = next((model for model in content.models if model.id in (job.id, delta_id)), None)
    judged = judgement(content, found.label, [found.id]) if found else None
    if judged is None:
        raise UserError(f"--run {content.path}: did not judge this model to the end, which is of job {job.id}")
    return judged


def _base(named: str) -> BaseSpec | None:
    try:
        return read_base(named)
    except UserError:
        return None


def _card(
    repository: str,
    job: Job,
    judged: Judgement | None,
    base: BaseSpec | None,
    licence: str,
    *,
    delta_id: str,
    is_hook: bool,
    is_whole: bool,
) -> str:
    """The text of README.md."""
    name = repository.rpartition("/")[2]
    base_name = base.name if base else Path(job.base).stem
    return (
        templates()
        .get_template("card.md.j2")
        .render(
            front_matter=front_matter(name, base, job.method, judged, licence=licence, is_whole=is_whole),
            title=name,
            repository=repository,
            base_name=base_name,
            base_source=base.source if base else base_name,
            base_id=job.base_id,
            concepts=job.concepts,
            method=job.method,
            config=" ".join(f"{key}={value}" for key, value in job.config.items()),
            seed=job.seed,
            job_id=job.id,
            delta_id=delta_id,
            delta_file=DELTA_FILE,
            efface=__version__,
            judged=judged,
            is_hook=is_hook,
            is_whole=is_whole,
            has_delta=not is_whole,
            licence=licence,
        )
    )

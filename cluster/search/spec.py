"""A search: one method's settings over a space of configs, in one YAML file, read strictly.

    name: esd-miniature
    base: miniature
    concepts: {targets: [cat, bus]}
    method: esd
    preset: miniature
    config: {eta: 1.0}                                # overrides the preset, the same for every trial
    space:
      learning_rate: {loguniform: [2.0e-5, 5.0e-4]}
      steps: {integer: [20, 160]}
      variant: {choice: [x, x-strict]}
    trials: 16
    rungs: [1, 2, 4]                                  # images of each prompt, judged rung by rung
    max_weight_change: 0.02

Every trial is a campaign of one method: what a campaign says of concepts, evaluation and resources holds here too.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from efface.cluster.campaign.spec import Campaign, ConceptChoice, Evaluation, Limits, MethodChoice, Resources
from efface.config_files import StrictModel, find_config, read_config
from efface.errors import UserError, did_you_mean
from efface.train.method import get_method, parse_config

if TYPE_CHECKING:
    import optuna

Scalar = bool | int | float | str | None
Point = dict[str, Scalar]
"""A value for every field of the space."""


class Dimension(StrictModel):
    """The values that one field may take: exactly one of four kinds."""

    uniform: tuple[float, float] | None = Field(None, description="[low, high], every value as likely")
    loguniform: tuple[float, float] | None = Field(None, description="[low, high], every order of magnitude as likely")
    integer: tuple[int, int] | None = Field(None, description="[low, high], both of them values")
    choice: tuple[Scalar, ...] | None = Field(None, min_length=2, description="one of these")

    @model_validator(mode="after")
    def _one_kind(self) -> "Dimension":
        if sum(getattr(self, kind) is not None for kind in type(self).model_fields) != 1:
            raise ValueError(f"should have exactly one of {', '.join(type(self).model_fields)}")
        for low, high in filter(None, (self.uniform, self.loguniform, self.integer)):
            if not low < high:
                raise ValueError(f"should be [low, high] with low below high, not [{low}, {high}]")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError("loguniform should begin above 0")
        if self.choice and len(set(map(repr, self.choice))) < len(self.choice):
            raise ValueError("choice names a value twice")
        return self

    @property
    def probes(self) -> tuple[Scalar, ...]:
        """Values by which a config is checked to take them all: the ends, and one between."""
        if self.choice:
            return self.choice
        if self.integer:
            return self.integer
        low, high = self._range
        return low, high, low + 0.618 * (high - low)

    def suggest(self, trial: "optuna.Trial", name: str) -> Scalar:
        """A value for the field `name`: the one that the trial has already, else a new one of its study's sampler."""
        if self.choice:
            return trial.suggest_categorical(name, self.choice)
        if self.integer:
            return trial.suggest_int(name, *self.integer)
        return trial.suggest_float(name, *self._range, log=self.loguniform is not None)

    @property
    def _range(self) -> tuple[float, float]:
        found = self.uniform or self.loguniform
        assert found
        return found


class Search(StrictModel):
    """One YAML file."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="of the run folder, if no other is given"
    )
    base: str = Field(description="a base of `efface bases`, a diffusers folder, a checkpoint or a hub id")
    strategy: Literal["single", "multi"] = Field("single", description="a model for each concept, or one for all")
    concepts: ConceptChoice = ConceptChoice()
    method: str = Field(description="by name, of `efface methods`")
    preset: str | None = Field(None, description="a shipped preset of the method, or a YAML file")
    config: dict[str, Any] = Field({}, description="fields that override the preset, the same for every trial")
    space: dict[str, Dimension] = Field(min_length=1, description="fields of the config that are searched")
    trials: int = Field(16, ge=1, description="configs to try, in all")
    rungs: tuple[int, ...] = Field(
        (1, 2, 4), min_length=1, description="images of each prompt by which a trial is judged, rung by rung"
    )
    reduction: int = Field(2, ge=2, description="about one in so many trials of a rung is judged on the next")
    max_weight_change: float | None = Field(
        None, gt=0, description="relative L2 norm of the change of all weights, mean over models; default: no limit"
    )
    seed: int = Field(0, ge=0, description="of the search, and of every job")
    evaluation: Evaluation = Evaluation()
    resources: Resources = Resources()
    limits: Limits = Limits()

    @field_validator("rungs")
    @classmethod
    def _rising(cls, rungs: tuple[int, ...]) -> tuple[int, ...]:
        if any(after <= before for before, after in zip((0, *rungs), rungs, strict=False)):
            raise ValueError(f"should be rising numbers of images, such as [1, 2, 4], not {list(rungs)}")
        return rungs

    @field_validator("evaluation")
    @classmethod
    def _rungs_say_how_many(cls, evaluation: Evaluation) -> Evaluation:
        if "images_per_prompt" in evaluation.model_fields_set:
            raise ValueError("images_per_prompt is given by rungs in a search")
        if len(evaluation.judges) > 1:
            raise ValueError("names several judges, a search uses one")
        return evaluation

    def campaign(self, point: Point) -> Campaign:
        """The campaign that a trial is, with the images of the last rung. Raises UserError where it cannot be."""
        config = {**self.config, **point}
        parse_config(self.method, config, self.preset)  # where a campaign takes a list of values, a search does not
        return Campaign(
            name=self.name,
            base=self.base,
            strategy=self.strategy,
            concepts=self.concepts,
            methods=(MethodChoice(method=self.method, preset=self.preset, config=config),),
            seeds=(self.seed,),
            evaluation=self.evaluation.model_copy(update={"images_per_prompt": self.rungs[-1]}),
            resources=self.resources,
            limits=self.limits,
        )


def read_search(name_or_path: str | Path, overrides: list[str] | None = None) -> Search:
    """A search file, or a shipped one by name, with `key=value` overrides. Raises UserError."""
    path = find_config("searches", name_or_path)
    search = read_config(Search, path, overrides)
    _check_space(search, str(path))
    return search


def _check_space(search: Search, where: str) -> None:
    """Raises UserError where the method's config could not take what the space holds."""
    fields = get_method(search.method).Config.model_fields
    for name in search.space:
        if name not in fields:
            raise UserError(f"{where}: space.{name} is no field of '{search.method}', {did_you_mean(name, fields)}")
        if name in search.config:
            raise UserError(f"{where}: '{name}' is in config and in space, should be in one of them")
    corner = {**search.config, **{name: dimension.probes[0] for name, dimension in search.space.items()}}
    for name, dimension in search.space.items():
        for value in dimension.probes:
            try:
                parse_config(search.method, {**corner, name: value}, search.preset)
            except UserError as error:
                raise UserError(f"{where}: config and space do not fit '{search.method}': {error}") from None

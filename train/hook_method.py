"""Methods without training: their delta holds no tensor, and names the hook that acts while images are made.

A method's file says which hook of `models/hooks/` it is, and the phrases of the concepts are what the hook is given.
The formulas stand in the hook's file. A chain of requests is one hook for everything asked so far, as of a closed form.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from efface.models.sampling.sampler_hooks import HookConfig, SamplerHook
from efface.train.method import ClosedFormMethod, DeltaKind, MethodConfig, Strategy, UnlearningTask


class PhrasesConfig(MethodConfig):
    """Which phrases the hook keeps away from; a method adds the hook's own settings."""

    prompts: tuple[str, ...] | None = Field(
        None, min_length=1, description="what the hook is to forget, in words; null: the phrase of every concept"
    )
    aliases: bool = Field(False, description="whether every concept's aliases are phrases too; papers: own lists")


class HookMethod(ClosedFormMethod):
    """A method that changes no weight."""

    Config: ClassVar[type[PhrasesConfig]]
    Hook: ClassVar[type[SamplerHook]]
    """The hook, which is registered under the method's name."""
    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single", "multi", "continual"})
    delta_kind: DeltaKind = "hook"

    @property
    def group(self) -> str:
        return "none"

    @property
    def image_passes(self) -> int:
        return self.Hook.passes(self.config)

    def solve(self, task: UnlearningTask) -> dict[str, Tensor]:
        return {}

    def hook_config(self, task: UnlearningTask) -> HookConfig:
        """The hook's settings, and what it is to forget."""
        settings = self.config.model_dump(exclude=set(PhrasesConfig.model_fields))
        return self.Hook.Config(prompts=self.phrases(task), **settings)

    def phrases(self, task: UnlearningTask) -> tuple[str, ...]:
        """Each once."""
        if self.config.prompts is not None:
            return tuple(self.config.prompts)
        names = [(concept.phrase, *(concept.aliases if self.config.aliases else ())) for concept in task.concepts]
        return tuple(dict.fromkeys(name for own in names for name in own))

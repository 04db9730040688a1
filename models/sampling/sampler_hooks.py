"""Sampler hooks: what erases a concept while an image is made, and changes no weight.

A delta of kind `hook` names one in its provenance, `{"hook": {"name": …, "config": {…}}}`. A hook may do two things:
replace the guidance of a batch, whose prompts it knows, so that it may rewrite their conditioning; and attach itself to
modules of the denoiser, to change what flows through them. Both are functions of the base, the config and the prompts
alone, row by row, so that an image still depends on nothing else.

`models/hooks/` has one file for each; a package of somebody else's adds one through the entry point group
`efface.hooks`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Protocol

from pydantic import Field
from torch import Tensor

from efface.config_files import StrictModel, parse
from efface.errors import UserError
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.delta import Delta
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor, classifier_free_guidance
from efface.models.text.text_encoding import encode_prompts
from efface.registry import Registry


class Guidance(Protocol):
    """The prediction that a step goes by; `classifier_free_guidance` is the plain one."""

    def __call__(
        self,
        predict: NoisePredictor,
        latents: Tensor,
        timestep: Any,
        cond: Conditioning,
        uncond: Conditioning,
        guidance_scale: float,
    ) -> Tensor: ...


class HookConfig(StrictModel):
    """The settings of a hook. Every field has a description that gives its unit and its source."""

    prompts: tuple[str, ...] = Field(min_length=1, description="phrases of what is to be forgotten")


class SamplerHook:
    """What acts on images of one base as it stands; this class itself is no hook at all."""

    Config: ClassVar[type[HookConfig]]
    stock_pipeline: ClassVar[str] = "diffusers has no pipeline that does so"
    """What a user of diffusers' own pipelines can do instead; `{prompts}` stands for the phrases."""

    adapters: ClassVar[bool] = False
    """Whether the delta's tensors are those of adapters, which can be merged as strong for every prompt."""

    @classmethod
    def passes(cls, settings: Any) -> int:
        """Rows that a guided step takes of the denoiser for an image; plain guidance takes 2."""
        return 2

    def guidance(self, prompts: Sequence[str], start: int = 0) -> Guidance:
        """Of a batch of images of these prompts, one a row. Made anew for each batch, so it may keep state.

        start: steps of these images that are done already, by another model.
        """
        return classifier_free_guidance

    def attached(self, denoiser: Denoiser) -> AbstractContextManager[None]:
        """Within it the hook acts on modules of the denoiser, which is left as it was."""
        return nullcontext()


HOOKS: Registry[Callable[[Base, Any], SamplerHook]] = Registry(
    "sampler hook", "efface.hooks", package="efface.models.hooks"
)


def hook_of(base: Base) -> SamplerHook:
    """The hook that the delta in `base` names; one that does nothing where it names none.

    Raises UserError where there is no such hook here, or its config is not one.
    """
    if base.applied is None or base.applied.kind != "hook":
        return SamplerHook()
    hook, config = named_hook(base.applied)
    return hook(base, config)


def named_hook(delta: Delta) -> tuple[Any, HookConfig]:
    """The class and the config of a delta of kind `hook`. Raises as `hook_of` does."""
    entry = delta.provenance.get("hook")
    entry = entry if isinstance(entry, dict) else {}
    name, settings = str(entry.get("name", "")), entry.get("config") or {}
    try:
        hook: Any = HOOKS.get(name)
    except UserError as error:
        raise UserError(f"delta {delta.id}: {error}") from None
    return hook, parse(hook.Config, settings, f"delta {delta.id}, hook {name}")


def stock_advice(delta: Delta) -> str:
    """What a user of diffusers' own pipelines can do in place of a delta of kind `hook`, as part of a sentence."""
    hook, config = named_hook(delta)
    return str(hook.stock_pipeline).format(prompts=", ".join(config.prompts))


def static(delta: Delta) -> Delta:
    """The adapters of a delta of kind `hook` at full strength for every prompt, as a delta that says so.

    Raises UserError where it has none.
    """
    hook, config = named_hook(delta)
    name = delta.provenance["hook"]["name"]
    if not getattr(hook, "adapters", False):
        raise UserError(f"delta {delta.id}: hook '{name}' has no adapters that could be merged for every prompt")
    kept = {key: value for key, value in delta.provenance.items() if key != "hook"}
    left_out = {"delta": delta.id, "hook": name, "config": config.model_dump(mode="json")}
    return Delta("adapter", delta.tensors, {**kept, "base_id": delta.base_id, "static_export": left_out})


def joined(base: Base, prompts: Sequence[str]) -> Conditioning:
    """One row: the phrases as one prompt, joined by commas."""
    return encode_prompts(base, [", ".join(prompts)])

"""The sampler: an image is a function of model, prompt, seed and recipe, and it is the one diffusers makes."""

import warnings
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from efface.errors import UserError
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.noise_scheduler import make_scheduler
from efface.models.recipe import Recipe
from efface.models.sampling import decoding, sampler
from efface.models.sampling.sampler import ImageRequest, sample

REQUESTS = [ImageRequest(prompt, seed) for prompt in ("a red cat", "a dog, at night") for seed in (0, 7)]


def recipe(**changes: object) -> Recipe:
    fields = {"name": "t", "scheduler": "pndm", "steps": 4, "guidance_scale": 5.0, "height": 16, "width": 16}
    return Recipe(**{**fields, "batch_size": 3, **changes})


def far(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of a pixel, in grey levels."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def by_diffusers(base: Base, recipe: Recipe, request: ImageRequest) -> np.ndarray:
    pipeline = StableDiffusionPipeline(
        base.vae,
        base.text_encoder,
        base.tokenizer,
        base.unet,
        make_scheduler(recipe.scheduler, base.scheduler_config, recipe.steps),
        None,
        None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(request.seed)
    made = pipeline(
        request.prompt,
        height=recipe.height,
        width=recipe.width,
        num_inference_steps=recipe.steps,
        guidance_scale=recipe.guidance_scale,
        negative_prompt=recipe.negative_prompt,
        generator=generator,
        output_type="np",
    ).images[0]
    return (made * 255).round().astype(np.uint8)


@pytest.mark.parametrize("scheduler", ["pndm", "ddim", "dpm++", "euler", "euler-a", "ddpm", "UniPCMultistepScheduler"])
def test_images_are_those_of_diffusers_own_pipeline(tiny_base: Base, scheduler: str) -> None:
    requested = recipe(scheduler=scheduler, negative_prompt="ugly")
    ours = sample(tiny_base, requested, REQUESTS)
    theirs = np.stack([by_diffusers(tiny_base, requested, request) for request in REQUESTS])
    assert theirs.std() > 10
    assert far(ours, theirs) <= 1


@pytest.mark.parametrize("scheduler", ["pndm", "ddim", "dpm++", "euler", "ddpm", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("further", [{}, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}])
def test_so_they_are_of_a_base_that_predicts_velocities(
    tiny_base: Base, scheduler: str, further: dict[str, object]
) -> None:
    requested, two = recipe(scheduler=scheduler, negative_prompt="ugly"), REQUESTS[::3]
    noise = sample(tiny_base, requested, two)
    tiny_base.scheduler_config |= {"prediction_type": "v_prediction", **further}
    ours = sample(tiny_base, requested, two)
    theirs = np.stack([by_diffusers(tiny_base, requested, request) for request in two])
    assert far(ours, theirs) <= 1
    assert far(ours, noise) > 10


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
def test_without_guidance_there_is_no_unconditional_half(tiny_base: Base, guidance_scale: float) -> None:
    requested = recipe(guidance_scale=guidance_scale, batch_size=1)
    sizes: list[int] = []
    tiny_base.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    ours = sample(tiny_base, requested, REQUESTS[:1])[0]
    assert set(sizes) == {1}
    assert far(ours, by_diffusers(tiny_base, requested, REQUESTS[0])) <= 1


@pytest.mark.parametrize("scheduler", ["pndm", "euler-a"])
def test_bits_do_not_depend_on_order_neighbours_place_or_padding(tiny_base: Base, scheduler: str) -> None:
    requested = recipe(scheduler=scheduler)
    together = sample(tiny_base, requested, REQUESTS)
    assert np.array_equal(sample(tiny_base, requested, REQUESTS[::-1]), together[::-1])
    for request, image in zip(REQUESTS, together, strict=True):
        assert np.array_equal(sample(tiny_base, requested, [request])[0], image)


def test_every_batch_has_one_shape_the_last_one_padded(tiny_base: Base) -> None:
    sizes: list[int] = []
    tiny_base.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    sample(tiny_base, recipe(), REQUESTS)
    assert set(sizes) == {2 * 3}


def test_another_batch_size_moves_no_pixel_by_more_than_one_level(tiny_base: Base) -> None:
    images = [sample(tiny_base, recipe(batch_size=size), REQUESTS) for size in (1, 2, 4, 5)]
    assert max(far(images[0], other) for other in images[1:]) <= 1


def test_seeds_and_prompts_matter(tiny_base: Base) -> None:
    images = sample(tiny_base, recipe(), REQUESTS)
    assert len({image.tobytes() for image in images}) == 4


def test_the_negative_prompt_matters(tiny_base: Base) -> None:
    plain, negative = (sample(tiny_base, recipe(negative_prompt=text), REQUESTS[:1]) for text in ("", "ugly"))
    assert not np.array_equal(plain, negative)


def test_images_are_uint8_of_the_recipes_size(tiny_base: Base) -> None:
    images = sample(tiny_base, recipe(height=24, width=16), REQUESTS[:1])
    assert (images.dtype, images.shape) == (np.uint8, (1, 24, 16, 3))
    assert sample(tiny_base, recipe(), []).shape == (0, 16, 16, 3)


def test_progress_counts_images_without_padding(tiny_base: Base) -> None:
    done: list[int] = []
    sample(tiny_base, recipe(), REQUESTS, done.append)
    assert done == [3, 1]


def test_each_prompt_is_encoded_once(tiny_base: Base) -> None:
    encoded: list[int] = []
    tiny_base.text_encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(1))
    sample(tiny_base, recipe(), REQUESTS)
    assert len(encoded) == 3  # two prompts and the negative one


def test_a_model_of_nans_gives_grey_images_and_a_warning(tiny_base: Base) -> None:
    bias = tiny_base.unet.conv_out.bias
    tiny_base.swap(Delta("weights", {"unet.conv_out.bias": bias * torch.nan}, {"base_id": tiny_base.fingerprint}))
    with pytest.warns(UserWarning, match="not numbers"):
        images = sample(tiny_base, recipe(), REQUESTS[:1])
    assert set(np.unique(images)) == {128}


@pytest.mark.parametrize("ahead", [0, 1])
def test_of_which_images_values_were_no_numbers_is_reported_one_by_one(
    ahead: int, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 3 and 1, the last one padded; the second image of the first and the one of the second are broken."""
    monkeypatch.setattr(sampler, "overlapping", lambda device: ahead)
    really = tiny_base.vae.decode
    batches = iter([1, 0])

    def decode(latents: torch.Tensor) -> object:
        made = really(latents)
        made.sample[next(batches), 0, 3, 5] = torch.inf
        return made

    monkeypatch.setattr(tiny_base.vae, "decode", decode)
    found: list[int] = []
    with pytest.warns(UserWarning, match="not numbers"):
        sample(tiny_base, recipe(), REQUESTS, on_not_finite=found.append)
    assert found == [1, 3]


def test_a_batch_is_decoded_while_the_next_is_denoised_where_that_is_beside(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, whose streams are played here: nothing is waited for before the next batch is on its way."""
    plain, order = sample(tiny_base, recipe(), REQUESTS), list[str]()
    denoised = sampler.denoise

    class Stream:
        wait_stream = staticmethod(lambda other: order.append("after the denoising"))
        record_event = staticmethod(lambda: Stream)
        synchronize = staticmethod(lambda: order.append("waited for"))

    def denoise(*args: Any) -> torch.Tensor:
        order.append("denoised")
        return denoised(*args)

    for module in (sampler, decoding):
        monkeypatch.setattr(module, "overlapping", lambda device: 1)
    monkeypatch.setattr(sampler, "denoise", denoise)
    monkeypatch.setattr(decoding, "_stream", lambda device: Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: order.append("held for it"))
    seen: list[int] = []
    images = sample(tiny_base, recipe(), REQUESTS, on_batch=seen.append)
    assert np.array_equal(images, plain) and seen == [3, 1]
    begun = ["denoised", "after the denoising", "held for it"]
    assert order == [*begun, *begun, "waited for", "waited for"]


def test_half_precision_changes_little_and_leaves_the_base_alone(tiny_base: Base) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_base.tensors().items()}
    full = sample(tiny_base, recipe(), REQUESTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        half = sample(tiny_base, recipe(dtype="bfloat16"), REQUESTS)
    assert 0 < np.abs(full.astype(int) - half).mean() < 8
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_base.tensors().items())


@pytest.mark.parametrize("name", ["dpm", "UNet2DConditionModel", "DPMSolverSDEScheduler"])
def test_an_unknown_scheduler_is_a_users_mistake(tiny_base: Base, name: str) -> None:
    with pytest.raises(UserError, match=f"unknown scheduler '{name}'"):
        sample(tiny_base, recipe(scheduler=name), REQUESTS[:1])

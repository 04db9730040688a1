"""Batches whose size the memory decides."""

import pytest
import torch

from efface.models.base import Base
from efface.models.recipe import Recipe
from efface.models.sampling import batch_size as module
from efface.models.sampling.batch_size import batch_size, image_bytes
from efface.models.sampling.sampler import ImageRequest, sample

AUTO = Recipe(name="t", scheduler="ddim", steps=2, guidance_scale=5.0, height=16, width=16, batch_size="auto")


@pytest.mark.parametrize(("images", "sizes"), [(40, 40), (64, 64), (65, 33), (130, 44), (0, 1)])
def test_batches_are_about_equally_large_and_no_more_than_64(tiny_base: Base, images: int, sizes: int) -> None:
    assert batch_size(tiny_base, AUTO, images) == sizes
    assert batch_size(tiny_base, AUTO.model_copy(update={"batch_size": 5}), images) == 5


def test_a_batch_fits_the_memory(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    one = image_bytes(tiny_base, AUTO)
    for free, fitting in ((one * 10.1 / module.USABLE, 10), (one * 2.1 / module.USABLE, 2), (0, 1)):
        monkeypatch.setattr(module, "free_memory", lambda device, free=free: int(free))
        assert batch_size(tiny_base, AUTO, fitting * 7) == fitting


def test_an_image_takes_the_more_the_larger_it_is_and_less_in_half_precision(tiny_base: Base) -> None:
    larger = AUTO.model_copy(update={"height": 32, "width": 32})
    half = larger.model_copy(update={"dtype": "bfloat16", "vae_dtype": "bfloat16"})
    assert image_bytes(tiny_base, AUTO) < image_bytes(tiny_base, half) < image_bytes(tiny_base, larger)


def test_a_batch_of_such_a_size_is_sampled(tiny_base: Base) -> None:
    sizes: list[int] = []
    tiny_base.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    assert len(sample(tiny_base, AUTO, [ImageRequest("a cat", seed) for seed in range(3)])) == 3
    assert set(sizes) == {2 * 3}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_free_memory_of_a_gpu_is_no_more_than_there_is() -> None:
    device = torch.device("cuda")
    assert 0 < module.free_memory(device) <= torch.cuda.get_device_properties(device).total_memory

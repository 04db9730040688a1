"""The shapes of a base, read from its configs alone."""

from pathlib import Path

from efface.models.base import Base, BaseSpec, read_base
from efface.models.shapes import model_shapes


def test_shapes_come_from_the_configs_alone() -> None:
    shapes = model_shapes(BaseSpec(name="x", source="some/where-on-the-hub", architecture="sd-v1-4"))
    assert (shapes.image_size, shapes.latent_size, shapes.pixels_per_latent) == (512, 64, 8)
    assert all(module.device.type == "meta" for module in (shapes.unet, shapes.vae, shapes.text_encoder))
    # published: UNet, VAE and CLIP ViT-L/14's text half
    assert shapes.parameters == 859_520_964 + 83_653_863 + 123_060_480


def test_one_checkpoint_file_has_the_shapes_of_stable_diffusion_v1_4(tmp_path: Path) -> None:
    assert model_shapes(BaseSpec(name="x", source=str(tmp_path / "x.safetensors"))).parameters == 1_066_235_307


def test_shapes_are_those_of_the_base_that_is_loaded(tiny_base: Base, tiny_base_folder: Path) -> None:
    shapes = model_shapes(read_base(tiny_base_folder))
    assert shapes.parameters == sum(tensor.numel() for tensor in tiny_base.tensors().values())
    assert shapes.scheduler_config == tiny_base.scheduler_config and shapes.recipe.name == tiny_base.spec.recipe

"""Parameter groups, counted at the size of Stable Diffusion v1.4, with the sums done here by hand."""

import pytest
from torch import nn

from efface.errors import UserError
from efface.models.base import Base, architecture
from efface.models.loading import empty_components
from efface.models.parameter_groups import group_names, select

# Channels of the 16 cross-attentions: 2 in each of three down blocks, 1 in the middle, 3 in each of three up blocks.
CHANNELS = 2 * [320] + 2 * [640] + 2 * [1280] + [1280] + 3 * [1280] + 3 * [640] + 3 * [320]
SUM, SUM_OF_SQUARES = sum(CHANNELS), sum(c * c for c in CHANNELS)
XATTN = 2 * SUM_OF_SQUARES + 2 * 768 * SUM + SUM  # to_q and to_out of C x C, to_k and to_v of C x 768, a bias in to_out
UNET = 859_520_964
# time_embedding: 320 -> 1280 -> 1280; conv_norm_out: scale and shift; conv_out: 3 x 3 from 320 to 4; all with bias.
TIME = (320 * 1280 + 1280) + (1280 * 1280 + 1280)
HEAD = 2 * 320 + (320 * 4 * 9 + 4)


@pytest.fixture(scope="module")
def sd() -> dict[str, nn.Module]:
    unet, vae, text_encoder = empty_components(architecture("sd-v1-4"))
    return {"unet": unet, "vae": vae, "text_encoder": text_encoder}


def count(modules: dict[str, nn.Module], group: str) -> int:
    return sum(parameter.numel() for parameter in select(modules, group).values())


def norms(module: nn.Module) -> int:
    kinds = (nn.GroupNorm, nn.LayerNorm)
    return sum(p.numel() for owner in module.modules() if isinstance(owner, kinds) for p in owner.parameters())


def test_the_channels_of_the_cross_attentions_sum_to_12480() -> None:
    assert (len(CHANNELS), SUM) == (16, 12_480)


@pytest.mark.parametrize(
    ("group", "tensors", "parameters"),
    [
        ("full", 686, UNET),
        ("kv-xattn", 32, 19_169_280),
        ("v-xattn", 16, 9_584_640),
        ("xattn", 80, XATTN),
        ("selfattn", 80, 4 * SUM_OF_SQUARES + SUM),
        ("attn", 160, XATTN + 4 * SUM_OF_SQUARES + SUM),
        ("noxattn", 686 - 80 - 8, UNET - XATTN - TIME - HEAD),
        ("notime", 686 - 8, UNET - TIME - HEAD),
        # Old ESD's blocks: two of 640 channels in the up path; one of 640 and one of 1280 in the down path.
        ("xlayer", 10, 2 * (2 * 640**2 + 2 * 768 * 640 + 640)),
        ("selflayer", 10, 4 * (640**2 + 1280**2) + 640 + 1280),
        # proj_in, proj_out, 8 of attention, and the feed-forward's C -> 2 x 4 C (gated) and 4 C -> C, all without bias.
        ("transformer", 192, (2 + 2 + 4 + 8 + 4) * SUM_OF_SQUARES + 2 * 768 * SUM),
        ("te-embedding", 1, 49_408 * 768),
        ("te-attn", 12 * 8, 12 * 4 * (768**2 + 768)),
        ("te-layer0", 12, 4 * (768**2 + 768) + (768 * 3072 + 3072) + (3072 * 768 + 768)),
        ("te-full", 194, 123_060_480 - 2 * 768),
        ("te-base", 194, 123_060_480 - (49_408 + 77) * 768),
    ],
)
def test_a_group_has_its_known_size(sd: dict[str, nn.Module], group: str, tensors: int, parameters: int) -> None:
    assert len(select(sd, group)) == tensors
    assert count(sd, group) == parameters


def test_the_published_sizes_in_millions(sd: dict[str, nn.Module]) -> None:
    assert f"{count(sd, 'kv-xattn') / 1e6:.2f} {count(sd, 'xattn') / 1e6:.2f}" == "19.17 43.96"


def test_esd_u_leaves_out_norms_and_noxattn_leaves_out_time_and_head(sd: dict[str, nn.Module]) -> None:
    assert count(sd, "esd-u") == UNET - XATTN - norms(sd["unet"])
    assert count(sd, "esd-all") == UNET - norms(sd["unet"])
    only_esd_u = select(sd, "esd-u").keys() - select(sd, "noxattn").keys()
    assert {name.split(".")[1] for name in only_esd_u} == {"time_embedding", "conv_out"}


def test_the_norm_before_a_cross_attention_is_not_in_xattn(sd: dict[str, nn.Module]) -> None:
    norm = "unet.mid_block.attentions.0.transformer_blocks.0.norm2.weight"
    assert norm in select(sd, "noxattn")
    assert norm not in select(sd, "xattn")


def test_a_group_names_the_parameters_themselves(tiny_base: Base) -> None:
    for group in group_names():
        for name, parameter in select(tiny_base, group).items():
            assert parameter.data_ptr() == tiny_base.tensors()[name].data_ptr()


def test_an_unknown_group_is_a_users_mistake(tiny_base: Base) -> None:
    with pytest.raises(UserError, match="unknown parameter group 'xatn': did you mean 'xattn'"):
        select(tiny_base, "xatn")

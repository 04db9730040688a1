"""Compiled blocks: all their shapes are, hooks are seen as they come and go, and it can be undone."""

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, fx, nn

from efface.models.compiled_blocks import compile_blocks, restore_blocks

WIDTHS = range(4, 44, 4)
"""Ten: more than torch compiles by default."""


def test_every_shape_is_compiled_once_hooks_are_seen_and_it_can_be_undone() -> None:
    compilations: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, inputs: list[Tensor]) -> object:
        compilations.append(graph)
        return graph.forward

    network = nn.ModuleList(ResnetBlock2D(in_channels=width, temb_channels=4, groups=4) for width in WIDTHS).eval()
    inputs = [(torch.randn(1, width, 2, 2), torch.randn(1, 4)) for width in WIDTHS]

    @torch.no_grad()
    def outputs() -> list[Tensor]:
        return [block(*given) for block, given in zip(network, inputs, strict=True)]

    expected = outputs()
    torch.compiler.reset()
    compile_blocks(network, backend)  # type: ignore[arg-type]
    for found in (outputs(), outputs()):
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert len(compilations) == len(WIDTHS)
    first: ResnetBlock2D = network[0]
    handle = first.conv1.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert not torch.equal(outputs()[0], expected[0]) and len(compilations) == len(WIDTHS) + 1
    handle.remove()
    assert torch.equal(outputs()[0], expected[0]) and len(compilations) == len(WIDTHS) + 1
    restore_blocks(network)
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.compiler.reset()
        assert torch.equal(outputs()[0], expected[0])

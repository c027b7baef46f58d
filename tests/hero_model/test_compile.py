import torch

from hero_model.config import debug
from hero_model.nn.layers import TransformerLayer, compile_blocks
from hero_model.packed.batch import Layout


def test_compiled_blocks_give_the_eager_numbers_for_any_number_of_rows() -> None:
    torch.manual_seed(0)
    layer = TransformerLayer(debug(), debug().cross).eval()
    names = list(layer.state_dict())
    batches = [(torch.randn(sum(lengths), 64), Layout.of(lengths)) for lengths in ([2, 3, 3], [4, 5])]
    eager = [_run(layer, x, layout) for x, layout in batches]
    compile_blocks(layer)
    torch._dynamo.utils.counters.clear()
    for (x, layout), (out, gradient) in zip(batches, eager, strict=True):
        compiled_out, compiled_gradient = _run(layer, x, layout)
        torch.testing.assert_close(compiled_out, out, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(compiled_gradient, gradient, rtol=0, atol=1e-4 * float(gradient.abs().max()))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert list(layer.state_dict()) == names


def _run(layer: TransformerLayer, x: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    layer.zero_grad()
    out = layer(x, layout)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return out.detach(), layer.widen.weight.grad.clone()

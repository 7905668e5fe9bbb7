"""ggml's own rounding in torch: bits, gradients, and when it is done again."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge_agent.errors import ConversionError  # noqa: E402
from edge_agent.llama import ggml  # noqa: E402
from train_host.fake_quant import FakeQuantizer, Grid, StraightThrough  # noqa: E402

TYPES = ("F16", "BF16", "Q8_0", "Q5_0", "Q4_0", "Q4_1", "IQ4_NL", "Q3_K", "Q4_K", "Q6_K")


def matrix(rows: int = 70, columns: int = 512) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)


def linear(values: np.ndarray) -> torch.nn.Module:
    module = torch.nn.Linear(values.shape[1], values.shape[0], bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(values))
    return module


def quantizer_of(module: torch.nn.Module, grid: Grid, threads: int = 2) -> FakeQuantizer:
    quantizer = FakeQuantizer(threads)
    quantizer.add("w", module, grid)
    return quantizer


def counted(quantizer: FakeQuantizer, patch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one whenever weights are quantized."""
    calls: list[None] = []
    refresh = quantizer._refresh
    patch.setattr(quantizer, "_refresh", lambda: calls.append(refresh()))
    return calls


def in_one_call(values: np.ndarray, grid: Grid) -> np.ndarray:
    """What ggml makes of the whole matrix at once."""
    packed = np.empty(len(values) * ggml.row_bytes(grid.type, values.shape[1]), np.uint8)
    ggml.quantize(grid.type, values, packed, grid.importance)
    out = np.empty_like(values)
    ggml.dequantize(grid.type, packed, out)
    return out


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_values_are_those_of_one_call_of_ggml_whatever_the_threads(
    type_name: str, threads: int
) -> None:
    values, grid = matrix(), Grid(type_name)
    found = quantizer_of(linear(values), grid, threads).weight("w").detach().numpy()
    np.testing.assert_array_equal(found, in_one_call(values, grid))


def test_an_importance_matrix_changes_the_values_as_it_changes_ggmls() -> None:
    values = matrix()
    weighed = Grid("Q4_K", np.linspace(0.01, 9, 512, dtype=np.float32))
    found = quantizer_of(linear(values), weighed).weight("w").detach().numpy()
    np.testing.assert_array_equal(found, in_one_call(values, weighed))
    assert not np.array_equal(found, in_one_call(values, Grid("Q4_K")))


def test_rows_in_another_order_are_quantized_to_the_same_rows() -> None:
    """llama.cpp wants q and k in another order of rows than a checkpoint."""
    values, order = matrix(), np.random.default_rng(2).permutation(70)
    found = in_one_call(np.ascontiguousarray(values[order]), Grid("Q4_K"))
    np.testing.assert_array_equal(found, in_one_call(values, Grid("Q4_K"))[order])


def test_the_gradient_passes_straight_to_the_latent_weight() -> None:
    module = linear(matrix())
    quantizer = quantizer_of(module, Grid("Q4_0"))
    x = torch.from_numpy(matrix(5))
    (torch.nn.functional.linear(x, quantizer.weight("w")) ** 2).sum().backward()
    on_grid = quantizer.weight("w").detach().clone().requires_grad_()
    (torch.nn.functional.linear(x, on_grid) ** 2).sum().backward()
    assert torch.equal(module.weight.grad, on_grid.grad)


def test_only_a_change_of_the_weight_is_quantized_again(monkeypatch: pytest.MonkeyPatch) -> None:
    module = linear(matrix())
    quantizer = quantizer_of(module, Grid("Q4_0"))
    calls = counted(quantizer, monkeypatch)
    first = quantizer.weight("w").detach().clone()
    assert torch.equal(quantizer.weight("w"), first)
    assert len(calls) == 1
    with torch.no_grad():
        module.weight.mul_(1.5)
    assert not torch.equal(quantizer.weight("w"), first)
    module.weight.data.mul_(2)  # torch's version counter does not see this
    expected = in_one_call(module.weight.detach().numpy(), Grid("Q4_0"))
    np.testing.assert_array_equal(quantizer.weight("w").detach().numpy(), expected)
    assert len(calls) == 3


def test_training_goes_on_from_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors made in inference mode cannot be kept for a backward pass."""
    module = linear(matrix())
    quantizer = quantizer_of(module, Grid("Q4_0"))
    calls = counted(quantizer, monkeypatch)
    x = torch.from_numpy(matrix(5)).requires_grad_()
    for _ in range(2):
        with torch.inference_mode():
            quantizer.weight("w")
        torch.nn.functional.linear(x, quantizer.weight("w")).sum().backward()
        with torch.no_grad():
            module.weight.sub_(0.1 * module.weight.grad)
    assert len(calls) == 2


def test_an_optimizer_step_quantizes_all_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [linear(matrix()) for _ in range(3)]
    quantizer = FakeQuantizer(2)
    for number, module in enumerate(modules):
        quantizer.add(str(number), module, Grid("Q8_0"))
    calls = counted(quantizer, monkeypatch)
    optimizer = torch.optim.AdamW([module.weight for module in modules], lr=0.1)
    for step in range(2):
        for _ in range(2):  # accumulated
            sum(quantizer.weight(name).square().mean() for name in "012").backward()
        optimizer.step()
        assert len(calls) == step + 1


def test_a_backward_pass_after_the_weight_changed_fails_instead_of_using_the_new_one() -> None:
    module = linear(matrix())
    quantizer = quantizer_of(module, Grid("Q4_0"))
    x = torch.from_numpy(matrix(5)).requires_grad_()
    loss = torch.nn.functional.linear(x, quantizer.weight("w")).sum()
    with torch.no_grad():
        module.weight.add_(1)
    quantizer.weight("w")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_weight_that_is_not_finite_ends_the_training_with_its_name() -> None:
    values = matrix()
    values[3, 3] = np.nan
    with pytest.raises(ConversionError, match="the tensor w holds NaN"):
        quantizer_of(linear(values), Grid("Q4_0")).weight("w")


def test_gradients_agree_with_finite_differences_of_the_smooth_part() -> None:
    """torch's own check of the backward pass, on a grid that is nearly the identity."""
    latent = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    values = latent.detach().clone()
    out = StraightThrough.apply(latent, values)
    out.backward(torch.full_like(out, 2.0))
    assert torch.equal(latent.grad, torch.full_like(latent, 2.0))

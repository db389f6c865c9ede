"""Optimizers equal their textbook loops, decay goes by type, and state is kept by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.training.toys import ToyModel
from transformer.training.optimizer import (
    AdamConfig,
    AdamWConfig,
    OptimizerConfig,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_groups,
    set_learning_rate,
)


class Misleading(nn.Module):
    """Parameters whose names say the opposite of what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Linear(4, 4)  # a matrix called bias.weight
        self.weight = nn.LayerNorm(4)  # a gain called weight.weight
        self.norm = nn.Embedding(5, 4)
        self.matrix = nn.Parameter(torch.randn(4, 4))  # owned by no Linear
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)


def names(groups: list[dict[str, list[tuple[str, nn.Parameter]]]]) -> list[list[str]]:
    return [[name for name, _ in group["params"]] for group in groups]


def test_decay_goes_by_type_not_by_name() -> None:
    groups = parameter_groups(Misleading(), 0.1)
    assert names(groups) == [
        ["bias.weight", "norm.weight"],
        ["matrix", "bias.bias", "weight.weight", "weight.bias"],
    ]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    without = parameter_groups(Misleading(), 0.1, decay_embeddings=False)
    assert names(without)[0] == ["bias.weight"]


@pytest.mark.parametrize("decay_embeddings", [True, False])
def test_a_tied_matrix_is_listed_once_and_follows_the_embeddings(decay_embeddings: bool) -> None:
    groups = parameter_groups(ToyModel(), 0.1, decay_embeddings=decay_embeddings)
    listed = [name for group in names(groups) for name in group]
    assert sorted(listed) == sorted(name for name, _ in ToyModel().named_parameters())
    assert ("embedding.weight" in names(groups)[0]) == decay_embeddings


def gradients(step: int, parameters: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]


def textbook(
    start: list[Tensor], decays: list[float], beta1: float, beta2: float, eps: float, steps: int
) -> list[Tensor]:
    """1412.6980 algorithm 1, with 1711.05101's decoupled decay, one scalar operation after the other."""
    result = []
    for index, theta in enumerate(start):
        flat = theta.flatten().tolist()
        m, v = [0.0] * len(flat), [0.0] * len(flat)
        for t in range(1, steps + 1):
            g = gradients(t, start)[index].flatten().tolist()
            lr = 1e-2 / t**0.5
            for i in range(len(flat)):
                m[i] = beta1 * m[i] + (1 - beta1) * g[i]
                v[i] = beta2 * v[i] + (1 - beta2) * g[i] ** 2
                m_hat, v_hat = m[i] / (1 - beta1**t), v[i] / (1 - beta2**t)
                flat[i] -= lr * decays[index] * flat[i]
                flat[i] -= lr * m_hat / (v_hat**0.5 + eps)
        result.append(torch.tensor(flat, dtype=torch.float64).reshape(theta.shape))
    return result


@pytest.mark.parametrize(
    ("config", "decay", "betas", "eps"),
    [(AdamConfig(), 0.0, (0.9, 0.98), 1e-9), (AdamWConfig(), 0.1, (0.9, 0.95), 1e-8)],
)
def test_two_hundred_steps_equal_the_textbook(
    config: OptimizerConfig, decay: float, betas: tuple[float, float], eps: float
) -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3)).double()
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = config.build(model)
    for t in range(1, 201):
        for parameter, gradient in zip(model.parameters(), gradients(t, start), strict=True):
            parameter.grad = gradient
        set_learning_rate(optimizer, 1e-2 / t**0.5)
        optimizer.step()
    expected = textbook(start, [decay, 0.0, 0.0, 0.0], *betas, eps, 200)
    for parameter, value in zip(model.parameters(), expected, strict=True):
        assert (parameter - value).abs().max() <= 1e-10


class Reordered(nn.Module):
    """`ToyModel`'s parameters, registered in another order."""

    def __init__(self, model: ToyModel) -> None:
        super().__init__()
        self.embedding = (
            model.embedding
        )  # stays first: a tied matrix goes by the name it is found under first
        for name, module in reversed(list(model.named_children())):
            self.add_module(name, module)


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = AdamWConfig().build(model)
    for number, (_, parameter) in enumerate(sorted(model.named_parameters(), key=lambda item: str(item[0]))):
        parameter.grad = torch.full_like(parameter, float(number + 1))
    optimizer.step()
    return optimizer


def test_state_is_kept_by_name_whatever_the_order() -> None:
    model = ToyModel()
    tensors = optimizer_tensors(stepped(model))
    assert {"expand.weight.exp_avg", "expand.weight.exp_avg_sq", "expand.weight.step"} <= tensors.keys()
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    other = AdamWConfig().build(Reordered(ToyModel()))
    load_optimizer_tensors(other, kept)
    loaded = optimizer_tensors(other)
    assert loaded.keys() == kept.keys() and list(loaded) != list(kept)
    assert all(torch.equal(loaded[name], kept[name]) for name in kept)


def test_state_of_another_model_is_refused() -> None:
    optimizer = AdamWConfig().build(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"optimizer has 'elsewhere', which this model does not train"):
        load_optimizer_tensors(optimizer, {"elsewhere.exp_avg": torch.zeros(2)})

"""Optimizers and their parameter groups, which go by the type of the module that owns a parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

Beta = Annotated[float, Ge(0), Lt(1)]


@runtime_checkable
class OptimizerConfig(Protocol):
    """Settings that build an optimizer for a model; the loop sets its learning rate at every step."""

    kind: ClassVar[str]

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return an optimizer over every trainable parameter of `model`."""


@dataclass(frozen=True)
class AdamConfig:
    """Adam (1412.6980) with the settings of 1706.03762 §5.3: β₁ 0.9, β₂ 0.98, ε 1e-9, no weight decay."""

    kind: ClassVar[str] = "adam"
    beta1: Beta = 0.9
    beta2: Beta = 0.98
    eps: Annotated[float, Gt(0)] = 1e-9

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(model, weight_decay=0.0)
        return torch.optim.Adam(groups, betas=(self.beta1, self.beta2), eps=self.eps, fused=_can_fuse(model))


@dataclass(frozen=True)
class AdamWConfig:
    """Adam with decoupled weight decay (1711.05101 alg. 2): θ ← θ - lr·λ·θ before each Adam step.

    weight_decay: λ for the matrices of Linear and, if `decay_embeddings`, Embedding modules; a norm's gain
    and every bias have none. A matrix tied between the two kinds follows `decay_embeddings`.
    """

    kind: ClassVar[str] = "adamw"
    beta1: Beta = 0.9
    beta2: Beta = 0.95
    eps: Annotated[float, Gt(0)] = 1e-8
    weight_decay: Annotated[float, Ge(0)] = 0.1
    decay_embeddings: bool = True

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(model, self.weight_decay, decay_embeddings=self.decay_embeddings)
        return torch.optim.AdamW(groups, betas=(self.beta1, self.beta2), eps=self.eps, fused=_can_fuse(model))


def parameter_groups(
    model: nn.Module, weight_decay: float, *, decay_embeddings: bool = True
) -> list[dict[str, Any]]:
    """Split the trainable parameters, with their names, into a group that decays and one that does not."""
    matrices, embeddings = _matrices(model, nn.Linear), _matrices(model, nn.Embedding)
    decayed = matrices | embeddings if decay_embeddings else matrices - embeddings
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [pair for pair in named if pair[1] in decayed], "weight_decay": weight_decay},
        {"params": [pair for pair in named if pair[1] not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as tensors named `PARAMETER.STATE`, such as `lm_head.weight.exp_avg`.

    Names, not positions, are the keys: a checkpoint stays right when parameters are listed in another order.
    """
    return {
        f"{name}.{key}": value
        for name, parameter in _named_parameters(optimizer)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimizer a copy of what `optimizer_tensors` returned. Raise ValueError where names differ.

    A copy, because a checkpoint's tensors are mapped from its file, which rotation will remove.
    """
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        by_parameter.setdefault(name, {})[key] = tensor.clone()
    names = [name for name, _ in _named_parameters(optimizer)]
    if foreign := by_parameter.keys() - set(names):
        raise ValueError(f"the checkpoint's optimizer has {min(foreign)!r}, which this model does not train")
    state = {index: by_parameter[name] for index, name in enumerate(names) if name in by_parameter}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _named_parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def _matrices(model: nn.Module, owner: type[nn.Module]) -> set[nn.Parameter]:
    owned = (p for module in model.modules() if isinstance(module, owner) for p in module.parameters(False))
    return {parameter for parameter in owned if parameter.ndim >= 2}


def _can_fuse(model: nn.Module) -> bool:
    """The fused kernels serve floating-point parameters on CPU and CUDA; elsewhere PyTorch chooses."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in model.parameters())

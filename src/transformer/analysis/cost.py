"""What a model costs before it is run: parameters, operations per token, and the memory of training it.

Nothing here keeps formulas beside the modules, which would come to differ from them. Parameters are counted in the
model, operations from the shapes that pass through it, and the memory is that of the training step itself, carried
out on tensors that have a shape, a type and no data (PyTorch's fake tensors).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..base.sockets import Execution, Pairs, Scoring
from ..enhancements.architecture.moe.expert_choice import ExpertChoice
from ..enhancements.architecture.moe.mixture import MixtureOfExperts
from ..enhancements.ssm.scan import is_selective
from ..models import EncoderDecoder, EncoderOnly, Model, ModelConfig, SequenceClassifier, build
from ..training.average import WeightAverage
from ..training.config import TrainingConfig
from ..training.objective import (
    Causal,
    Classification,
    LossSum,
    Masked,
    ObjectiveConfig,
    SequenceToSequence,
)
from ..training.optimizer import OptimizerConfig
from ..training.step import TrainingStep
from .taps import Observer, observing


@dataclass(frozen=True)
class Shape:
    """One micro-batch: `rows` sequences of `length` tokens to predict and, for a pair, `source_length` to read."""

    rows: int
    length: int
    source_length: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.length < 1 or self.source_length < 0:
            raise ValueError(
                f"a batch of {self.rows} × {self.length} tokens (source {self.source_length}) cannot be; "
                "rows and length must be at least 1"
            )


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of the matrix products of one forward pass, an addition and a product being two.

    by_module: for the path of each module that maps linearly or attends; under the path "", all other products, such
    as linear attention's, as PyTorch counts them. tokens: those that the pass predicts; of a pair, the target's. As is
    usual, attention is counted in full, without regard to a mask. Of Mamba's recurrence, which is no
    product of matrices, the three operations by which each entry of a state is renewed are its module's.
    """

    by_module: Mapping[str, int]
    tokens: int

    @property
    def forward(self) -> int:
        """The operations of the pass."""
        return sum(self.by_module.values())

    @property
    def forward_per_token(self) -> float:
        return self.forward / self.tokens

    @property
    def training_per_token(self) -> float:
        """Forward and backward: each product has two more for its gradients. Recomputation is not counted."""
        return 3 * self.forward_per_token


@dataclass(frozen=True)
class Memory:
    """Bytes of the tensors of a training step.

    weights: with tables such as those of positions; gradients; optimizer; average: the moving average of weights;
    activations: what the forward pass leaves for the backward pass, with the loss; peak: the most alive at once.
    Gradients come as activations go, so the peak is neither their sum nor the largest.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    peak: int


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable and fixed weights, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_active_parameters(model: nn.Module) -> int:
    """Return the number of weights that a token passes through: of a mixture of experts, those of its own experts."""
    idle = sum(
        part.idle_weights() for part in model.modules() if isinstance(part, MixtureOfExperts | ExpertChoice)
    )
    return count_parameters(model) - idle


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Return the number of weights of each module that owns some, by path; tied weights belong to the first."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        counts[owner] = counts.get(owner, 0) + parameter.numel()
    return counts


def count_flops(config: ModelConfig, shape: Shape) -> Flops:
    """Count the operations of one forward pass over a batch of this shape.

    The pass is one of training: a part that runs on some of the tokens has a fixed capacity then; afterwards it
    chooses by values, which are not known here.
    """
    counter = _FlopCounter()
    with shapes_only():
        model = build(config).train()
        objective, everything = usual_objective(model), FlopCounterMode(display=False)
        with torch.no_grad(), observing(model, counter), everything, _Alive(_share(objective)):
            objective(model, objective.blank(shape.rows, shape.length, shape.source_length))
    other = everything.get_total_flops() - sum(counter.by_module.values())
    by_module = counter.by_module | counter.by_scan | ({"": other} if other else {})
    return Flops(by_module, shape.rows * shape.length)


def estimate_memory(
    config: ModelConfig,
    execution: Execution,
    shape: Shape,
    *,
    objective: ObjectiveConfig,
    optimizer: OptimizerConfig,
    training: TrainingConfig,
) -> Memory:
    """Return the memory of a training step, with `training.accumulate` micro-batches of this shape, on a CPU.

    The process needs more: the interpreter and PyTorch, and what the allocator keeps of memory given back.
    """
    with shapes_only(), _Alive(_share(objective)) as alive:
        model = build(config, execution).train()
        weights = alive.bytes
        stepper = optimizer.build(model)
        _make_state(model, stepper)
        stateful = alive.bytes
        average = None if training.ema_decay is None else WeightAverage(model, training.ema_decay)
        ready = alive.peak = alive.bytes
        noting = _Noting(objective, alive)
        blank = objective.blank(shape.rows, shape.length, shape.source_length)
        batches = [blank] * min(training.accumulate, 2)  # a third adds nothing
        TrainingStep(model, noting, stepper, lambda step: 0.0, average, training)(0, batches)
        gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        return Memory(
            weights,
            gradients,
            stateful - weights,
            ready - stateful,
            noting.after_forward[0] - ready,
            alive.peak,
        )


def usual_objective(model: Model) -> ObjectiveConfig:
    """Return what models of this kind are trained for first."""
    if isinstance(model, EncoderDecoder):
        return SequenceToSequence()
    if isinstance(model, EncoderOnly):
        return Masked()
    return Classification() if isinstance(model, SequenceClassifier) else Causal()


def _share(objective: ObjectiveConfig) -> float:
    """Which share of the targets counts, where a mask says which."""
    return objective.share if isinstance(objective, Masked) else 1.0


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside a `with` block, tensors have a shape, a type and no data: whatever is made there costs nothing.

    A question about a value, such as whether a first weight is to be drawn again, is answered by no.
    """
    with torch.random.fork_rng(devices=[]), FakeTensorMode(), _Alive():
        yield


class _FlopCounter(Observer):
    """Counts the matrix products of linear maps and of attention."""

    def __init__(self) -> None:
        self.by_module: dict[str, int] = {}
        self.by_scan: dict[str, int] = {}

    def on_module(self, path: str, module: nn.Module, output: Any) -> None:
        if isinstance(module, nn.Linear):
            self._add(path, 2 * module.in_features * output.numel())

    def on_attention(
        self, path: str, q: Tensor, k: Tensor, v: Tensor, pairs: Pairs, scoring: Scoring
    ) -> None:
        batch, heads, queries, width = q.shape  # b·h·t·s·e products for q kᵀ, and by the values' width again
        self._add(path, 2 * batch * heads * queries * k.shape[2] * (width + v.shape[3]))

    def on_scan(self, path: str, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
        if is_selective(x, dt, A, B, C):  # what is read of a state PyTorch counts
            self.by_scan[path] = self.by_scan.get(path, 0) + 3 * x.numel() * A.shape[1]

    def _add(self, path: str, flops: int) -> None:
        self.by_module[path] = self.by_module.get(path, 0) + flops


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the tensors that are alive, each storage once; answers questions about their values.

    A step asks which targets count and what its loss is, which tensors without data cannot say: it is told `share` of
    them, and 1. Whether a first weight is to be drawn again is answered by no.
    """

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.share = share
        self.bytes = self.peak = 0
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else int(args[0].dtype != torch.bool)
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], [_chosen(index, self.share) for index in args[1]])
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage())
        return result

    def _meet(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known[storage] = size = storage.nbytes()
            self._change(size)
            weakref.finalize(storage, self._change, -size)

    def _change(self, size: int) -> None:
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def _chosen(index: Tensor | None, share: float) -> Tensor | None:
    """Return the index that picks a share of the rows, in place of a mask of rows."""
    if index is None or index.dtype != torch.bool:
        return index
    return torch.arange(max(1, round(share * index.shape[0])), device=index.device)


class _Noting:
    """An objective, and how many bytes were alive each time it had been computed."""

    def __init__(self, objective: ObjectiveConfig, alive: _Alive) -> None:
        self.objective: Any = objective
        self.alive = alive
        self.after_forward: list[int] = []

    def count(self, batch: Any) -> int:
        return int(self.objective.count(batch))

    def __call__(self, model: nn.Module, batch: Any) -> LossSum:
        loss: LossSum = self.objective(model, batch)
        self.after_forward.append(self.alive.bytes)
        return loss


def _make_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer make the state that it has from its second step on."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

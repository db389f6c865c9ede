"""DeepNorm (Wang et al. 2022, DeepNet, arXiv 2203.00555): post-norm for hundreds of layers.

    x ← LN(α x + Dropout(f(x)))

α > 1 weighs the stream more than the branch, and β < 1 scales the first weights of the branch down, both by the number
of layers, N in the encoder and M in the decoder, so that the first updates change the output by a bounded amount at any
depth (§4, figure 2):

    one stack of N layers                     α = (2N)^¼               β = (8N)^−¼
    encoder of an encoder-decoder             α = 0.81 (N⁴M)^1/16      β = 0.87 (N⁴M)^−1/16
    decoder of an encoder-decoder             α = (3M)^¼               β = (12M)^−¼

The first weights are Xavier normal, with gain β for the feed-forward networks and the values' and output projections of
attention, and gain 1 for queries and keys. Embeddings, biases and what is outside the blocks begin as the model's own
rule says; the paper does not speak of them. A mixer that is no multi-head attention by softmax, such as a recurrent
one, has gain β in all its linear maps. Cost: as post-norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, TypeVar

from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from ...base.attention import MultiHeadAttention
from ...base.normalization import NoNormConfig
from ...base.sockets import Config, Context, Enhancement, InitializationConfig, Layer, NormConfig
from ...base.stack import StackConfig
from ...base.stacked import matrices
from ...base.transformer import EncoderDecoderConfig, XavierConfig
from ...base.wiring import Wiring
from ..attention.differential import DifferentialAttention
from ..attention.grouped_query import GroupedQueryAttention
from ..compose import replace_parts
from .placement import PlacementConfig, place

C = TypeVar("C", bound=Config)


class DeepNorm(Wiring):
    """LN(α x + Dropout(f(x))); `beta` is the gain of the branch's first weights."""

    def __init__(self, branch: Layer, norm: nn.Module, dropout: float, alpha: float, beta: float) -> None:
        super().__init__(branch, norm, dropout)
        self.alpha, self.beta = alpha, beta

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Weigh the stream, add, then normalize."""
        change = self.dropout(self.branch(x, context, state))
        return self.norm(self.alpha * x + change)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class DeepNormConfig(PlacementConfig):
    """Post-norm with a weighted stream; `deep_norm` computes α and β, and with both at 1 it is post-norm."""

    kind: ClassVar[str] = "deep_norm"
    alpha: Annotated[float, Gt(0)] = 1.0
    beta: Annotated[float, Gt(0)] = 1.0

    def build(self, d_model: int, branch: Layer, norm: NormConfig) -> DeepNorm:
        return DeepNorm(branch, norm.build(d_model), self.dropout, self.alpha, self.beta)


@dataclass(frozen=True)
class DeepNormInitializationConfig(InitializationConfig):
    """Xavier-normal weights in every branch that is wired by DeepNorm, with the gains it needs; `rest` elsewhere."""

    kind: ClassVar[str] = "deep_norm_initialization"
    rest: InitializationConfig = XavierConfig()

    def initialize(self, model: nn.Module) -> None:
        """Set the weights of every linear map and embedding in `model`, by type."""
        self.rest.initialize(model)
        for wiring in model.modules():
            if isinstance(wiring, DeepNorm):
                unscaled = set(_queries_and_keys(wiring.branch))
                for module in wiring.branch.modules():
                    if isinstance(module, nn.Linear):
                        gain = 1.0 if module in unscaled else wiring.beta
                        for matrix in matrices(module):
                            nn.init.xavier_normal_(matrix, gain)


def _queries_and_keys(branch: nn.Module) -> Iterator[nn.Module]:
    for module in branch.modules():
        if isinstance(module, MultiHeadAttention | GroupedQueryAttention | DifferentialAttention):
            yield from (module.q_proj, module.k_proj)


def deep_norm() -> Enhancement:
    """Wire every sub-layer by DeepNorm, with α, β and first weights by the number of layers; stacks end in no norm."""

    def rewire(stack: StackConfig, alpha: float, beta: float) -> StackConfig:
        return place(stack, lambda dropout: DeepNormConfig(dropout, alpha, beta), NoNormConfig())

    def one_stack(stack: StackConfig) -> StackConfig:
        n = len(stack.blocks)
        return rewire(stack, (2 * n) ** 0.25, (8 * n) ** -0.25)

    def two_stacks(config: EncoderDecoderConfig) -> EncoderDecoderConfig:
        n, m = len(config.encoder.blocks), len(config.decoder.blocks)
        depth = (n**4 * m) ** (1 / 16)
        encoder = rewire(config.encoder, 0.81 * depth, 0.87 / depth)
        return replace(
            config, encoder=encoder, decoder=rewire(config.decoder, (3 * m) ** 0.25, (12 * m) ** -0.25)
        )

    def initialization(rule: InitializationConfig) -> InitializationConfig:
        return rule if isinstance(rule, DeepNormInitializationConfig) else DeepNormInitializationConfig(rule)

    def apply(config: C) -> C:
        part: type[Config] = EncoderDecoderConfig if isinstance(config, EncoderDecoderConfig) else StackConfig
        change: Any = two_stacks if part is EncoderDecoderConfig else one_stack
        return replace_parts(replace_parts(config, part, change), InitializationConfig, initialization)

    return apply

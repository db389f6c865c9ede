"""The checks that all parts are held to find what they look for."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests import properties
from tests.catalog import make
from transformer.base.sockets import Execution
from transformer.base.transformer import transformer
from transformer.enhancements import naive_attention
from transformer.models import gpt

CONFIGS = {
    "gpt": gpt(vocab_size=11, d_model=12, n_heads=3, n_layers=2, d_ff=20, max_seq_len=16),
    "transformer": transformer(vocab_size=11, d_model=12, n_heads=3, n_layers=2, d_ff=20, max_seq_len=16),
}


@pytest.mark.shapes_unchecked
@pytest.mark.parametrize("name", CONFIGS)
def test_a_gradient_that_is_off_by_a_thousandth_in_any_parameter_is_found(name: str) -> None:
    model = make(CONFIGS[name], Execution(naive_attention))
    properties.compare_gradients(model)
    gradients = properties.value_and_gradients(model, properties.tokens(2, 6))[1]

    def wrong(gradient: Tensor) -> Tensor:
        return 1.001 * gradient

    for parameter_name, parameter in model.named_parameters():
        if gradients[parameter_name].norm() < 1e-9:
            continue  # that of a key's bias is zero
        handle = parameter.register_hook(wrong)
        with pytest.raises(AssertionError, match=r"\d of \d"):
            properties.compare_gradients(model)
        handle.remove()

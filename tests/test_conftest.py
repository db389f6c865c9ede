"""The nets under the other tests hold: shapes are checked, and nothing reaches the network."""

from __future__ import annotations

import socket
import sys
import textwrap
from pathlib import Path

import jaxtyping
import pytest
import torch

MODULE = """
    from __future__ import annotations

    from dataclasses import dataclass

    import torch
    from jaxtyping import Float
    from torch import Tensor, nn


    @dataclass(frozen=True)
    class Config:
        width: int = 4

        def build(self) -> Scale:
            return Scale(self.width)


    class Scale(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(width))

        def forward(self, x: Float[Tensor, "b t d"], bias: Float[Tensor, " d"]) -> Float[Tensor, "b t d"]:
            return x * self.weight + bias
"""


def test_the_hook_checks_shapes_of_modules_and_types_of_dataclasses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hooked_example.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    with jaxtyping.install_import_hook("hooked_example", "beartype.beartype"):
        import hooked_example  # type: ignore[import-not-found]
    scale = hooked_example.Config().build()
    assert scale(torch.ones(2, 3, 4), torch.ones(4)).shape == (2, 3, 4)
    with pytest.raises(jaxtyping.TypeCheckError, match="bias"):
        scale(torch.ones(2, 3, 4), torch.ones(1))
    with pytest.raises(jaxtyping.TypeCheckError, match="x"):
        scale(torch.ones(3, 4), torch.ones(4))
    with pytest.raises(jaxtyping.TypeCheckError, match="width"):
        hooked_example.Config(width="wide")


def test_the_hook_is_on_for_the_package() -> None:
    from transformer.utils.rng import derive_seed

    assert "transformer.utils.rng" in sys.modules
    with pytest.raises(jaxtyping.TypeCheckError):
        derive_seed("seven")  # type: ignore[arg-type]


def test_connections_off_this_machine_are_refused() -> None:
    with pytest.raises(PermissionError, match="may not reach the network"), socket.socket() as client:
        client.connect(("192.0.2.1", 80))
    with pytest.raises(PermissionError, match="may not look up a name"):
        socket.create_connection(("example.com", 80))


def test_connections_on_this_machine_work() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()

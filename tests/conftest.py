"""What every test runs under: checked shapes, fixed seeds, one thread, and no network."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

# Every signature in the package is checked, shapes included: in tests only, because it costs time.
jaxtyping.install_import_hook("transformer", "beartype.beartype")

settings.register_profile(
    "ci", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("nightly", deadline=None, print_blob=True, max_examples=2000)
settings.load_profile("ci")  # `--hypothesis-profile=nightly` draws other examples every time

torch.set_num_threads(1)


def _is_local(family: int, address: Any) -> bool:
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True
    host = str(address[0])
    try:
        return host in ("", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Refuse every connection that leaves this machine, and every look-up of a name."""
    real = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
    look_up = socket.getaddrinfo

    def guarded(name: str) -> Any:
        def call(self: socket.socket, *args: Any) -> Any:
            if not _is_local(self.family, args[-1]):
                raise PermissionError(f"a test may not reach the network: {args[-1]}")
            return real[name](self, *args)

        return call

    def local_look_up(host: Any, *args: Any, **options: Any) -> Any:
        if not _is_local(socket.AF_INET, (host or "",)):
            raise PermissionError(f"a test may not look up a name on the network: {host}")
        return look_up(host, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in real:
            patch.setattr(socket.socket, name, guarded(name))
        patch.setattr(socket, "getaddrinfo", local_look_up)
        yield


@pytest.fixture(autouse=True)
def _checked_shapes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check every call, unless the test is marked `shapes_unchecked`: the checks take most of a small model's time."""
    before = jaxtyping.config.jaxtyping_disable
    if request.node.get_closest_marker("shapes_unchecked"):
        jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.default_generator.manual_seed(
        0
    )  # of this one alone: to seed those of absent GPUs takes a millisecond


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


os.environ["COLUMNS"] = "100"  # consoles are as wide everywhere, also in subprocesses

import hypothesis
import pytest

from tests.helpers.support import RunningBridge
from tests.helpers.web import Web

# How long an example takes says more about the machine than about the code; nothing is written beside the tests.
hypothesis.settings.register_profile(
    "bridge", deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("bridge")


@pytest.fixture
def bridge(tmp_path):
    """A running bridge on an empty data folder."""
    with RunningBridge(tmp_path / "data") as running:
        yield running


@pytest.fixture
def web():
    """A web server that has history files."""
    with Web() as server:
        yield server

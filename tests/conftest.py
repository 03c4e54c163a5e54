import pytest

from tests.support import RunningBridge


@pytest.fixture
def bridge(tmp_path):
    """A running bridge on an empty data folder."""
    with RunningBridge(tmp_path / "data") as running:
        yield running

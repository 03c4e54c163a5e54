"""The short version of each battery; `python -m tests.reliability` runs the long ones."""

import pytest

from tests.reliability.__main__ import BATTERIES, battery
from tests.reliability.shim import Unable


@pytest.mark.parametrize("name", BATTERIES)
def test_the_short_version_holds(name, tmp_path):
    module = battery(name)
    try:
        print(module.run(module.SHORT, tmp_path))
    except Unable as reason:
        pytest.skip(str(reason))

"""What the tests of several forms share."""

import pytest

from tests.data.forms import Patches, noise


@pytest.fixture(scope="session")
def patches() -> Patches:
    """Patches that every form is written with; nobody may change them."""
    return noise()

"""One zygote for all tests of faults."""

from collections.abc import Iterator

import pytest

from tests.faults.ranks import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Starts jobs of several processes."""
    made = Zygote()
    yield made
    made.close()

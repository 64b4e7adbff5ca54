"""What several tests of the engine look at."""

import pytest

from tests.pipeline.seeing import Runs, make


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Four runs of one DAG. Whoever changes anything works on a copy."""
    return make(tmp_path_factory.mktemp("seen"))

"""What several tests of the page need."""

from pathlib import Path

import pytest

from tests.pipeline.report.hostile import TEXTS, roomy_page


@pytest.fixture(scope="package")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a thousand hostile texts wherever text can stand."""
    return roomy_page(tmp_path_factory.mktemp("hostile"), TEXTS)

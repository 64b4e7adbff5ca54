"""What every test shares: patient property tests on noisy machines, and the real data where it lies nearby."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("sluice", deadline=None, max_examples=60)
settings.load_profile("sluice")

PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real images, tables and malformed files beside the project; the test skips where they are not."""
    folder = PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder

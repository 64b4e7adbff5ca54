"""Every fault that sluice promises to bear has a test that injects it: `pytest -m fault` runs them.

A row of the catalogue (how many there are, and what each means, stands beside the tests that carry its number) is named
by `@pytest.mark.fault(row)`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CATALOGUE = TESTS.parents[1] / "shared" / "design" / "FAULTS.md"
LAST = 55


def marked() -> Iterator[int]:
    for path in TESTS.rglob("test_*.py"):
        for found in re.finditer(r"pytest\.mark\.fault\(([0-9, ]+)\)", path.read_text()):
            yield from map(int, found[1].split(","))


def test_every_fault_is_injected_by_a_test() -> None:
    assert set(marked()) == set(range(1, LAST + 1))


def test_the_catalogue_has_no_other_faults() -> None:
    if not CATALOGUE.exists():
        pytest.skip("the catalogue of faults is not here")
    rows = {int(number) for number in re.findall(r"^\| (\d+) \|", CATALOGUE.read_text(), re.MULTILINE)}
    assert rows == set(range(1, LAST + 1))

"""A disk that is full: a clean stop, and the same command goes on once there is space (FAULTS 33)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import Dag
from tests.chaos.drive import check, files, hashes, inline, local, whole
from tests.chaos.driver import sluice

pytestmark = pytest.mark.fault(33)

TEXT = """
dag: bulky
nodes:
  numbers: {steps: [{tests.toys.Numbers: {rows: 32, parts: 8}}]}
  bulk: {from: numbers, steps: [{tests.chaos.stages.Bulk: {kb: 256}}]}
  bundles: {from: numbers, steps: [{tests.chaos.stages.Bundle: {kb: 700}}]}
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"this machine does not let us mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_the_run_in_one_line_and_the_same_command_resumes_once_there_is_space(
    disk: Path, tmp_path: Path
) -> None:
    dag, root = tmp_path / "bulky.yaml", disk / "root"
    dag.write_text(TEXT)
    inline(Dag.load(dag), f"{tmp_path}/undisturbed")
    code, said = sluice("run", dag, root)
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert code == 2
    assert "No space left on device" in line
    assert "free space and run the same command, it resumes" in line
    assert "Traceback" not in said
    assert len(local(root).committed("bulk") | local(root).committed("bundles")) < 16
    spooled = [path for path in files(root, "*/data/*") if path.name.startswith("spool-")]
    assert len(spooled) <= 2, "of what both workers were at when the run ended, at most; `gc` takes it"
    before = whole(root)
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    code, said = sluice("run", dag, root)
    assert code == 0, said
    assert hashes(root) == hashes(tmp_path / "undisturbed")
    assert whole(root) > before
    check(root)

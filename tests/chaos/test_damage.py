"""Committed files that rot: every kind of them, in every way (FAULTS 40)."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import SluiceError, upkeep
from pipeline.cli import main
from pipeline.records import File, Record
from tests.chaos.drive import Case, check, files, generations, hashes, inline, local, tiny, values

pytestmark = pytest.mark.fault(40)

PURE = [
    ("numbers", "image"), ("numbers", "caption"), ("scores", "image"), ("scores", "caption"), ("listed", "image"),
    ("shards", "bundle"),
]  # fmt: skip
POOL = [("pool", "image"), ("pool", "caption"), ("pool", "tar")]
HOW = ["flip", "cut", "delete"]


def damage(path: Path, how: str) -> None:
    """Flip a bit in the middle, lose the second half, or lose it all."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if how == "flip":
        data[middle] ^= 1
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[:middle])
    else:
        path.unlink()


def pick(root: str, node: str, kind: str) -> tuple[Record, File, Path]:
    """A file of the last part of a node."""
    record = generations(root)[node].records[-1]
    file = record.file(kind)
    assert file is not None
    return record, file, Path(local(root).path, local(root).place(record, file))


def sluice(*arguments: str) -> tuple[int, str]:
    """The command line, in this process: exit code, and all that it said."""
    done = CliRunner().invoke(main, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, " ".join(done.output.split())


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("node", "kind"), PURE + POOL)
def test_a_damaged_file_is_named_with_its_remedy_and_is_never_read(case: Case, node: str, kind: str, how: str) -> None:
    root = f"{case.folder}/root"
    inline(case.dag, root)
    record, file, path = pick(root, node, kind)
    damage(path, how)
    with pytest.raises(SluiceError, match=rf"^{path} is (gone|corrupt).*`sluice verify {root} --repair`$"):
        local(root).read_file(record, file)
    code, said = sluice("verify", root)
    assert code == 1
    assert f"{path} {'is gone' if how == 'delete' else 'has other bytes than were committed'}" in said
    assert "1 damaged" in said


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("node", "kind"), PURE)
def test_a_pure_file_is_rebuilt_to_the_same_bytes(case: Case, node: str, kind: str, how: str) -> None:
    root = f"{case.folder}/root"
    inline(case.dag, root)
    _, file, path = pick(root, node, kind)
    damage(path, how)
    assert sluice("verify", root, "--repair")[0] == 0
    assert sha256(path.read_bytes()).hexdigest() == file.sha256
    assert sluice("verify", root) == (0, "every file is what its record says")
    case.converges(root)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("node", "kind"), POOL)
def test_what_a_pool_lost_is_marked_and_fetched_again(case: Case, node: str, kind: str, how: str) -> None:
    root = f"{case.folder}/root"
    inline(case.dag, root)
    before = sorted(values(root, "pool", ["uid", "status", "sha256"]))
    labels = sorted(values(root, "scores", ["caption_id", "label"], "caption"))
    damage(pick(root, node, kind)[2], how)
    code, said = sluice("verify", root, "--repair")
    assert code == 0
    assert sluice("verify", root)[0] == 0
    lost = generations(root)["pool"].statuses.get("lost", 0)
    assert bool(lost) == (kind != "caption"), "captions come from the input again"
    assert f"{lost} rows are lost; fetch them again with --retry-failed pool" in said
    inline(case.dag, root)
    check(root, rotten=True)
    inline(case.dag, root, retry=["pool"])
    check(root, rotten=True)
    assert "lost" not in generations(root)["pool"].statuses
    assert sorted(values(root, "pool", ["uid", "status", "sha256"])) == before
    assert sorted(values(root, "scores", ["caption_id", "label"], "caption")) == labels


def test_a_retried_part_that_is_damaged_loses_only_its_own_rows(case: Case) -> None:
    root = f"{case.folder}/root"
    inline(case.dag, root)
    (case.folder / "answers").touch()
    inline(case.dag, root, retry=["pool"])
    assert generations(root)["pool"].statuses == {"success": 24}
    record, _, path = pick(root, "pool", "image")
    assert record.part.endswith(".r1")
    path.unlink()
    assert sluice("verify", root, "--repair")[0] == 0
    lost = record.rows["image"]
    assert generations(root)["pool"].statuses == {"success": 24 - lost, "lost": lost}
    inline(case.dag, root, retry=["pool"])
    assert generations(root)["pool"].statuses == {"success": 24}
    check(root, rotten=True)


def test_everything_damaged_at_once_is_mended_as_far_as_it_goes(case: Case) -> None:
    root = f"{case.folder}/root"
    inline(case.dag, root)
    before = sorted(values(root, "pool", ["uid", "status", "sha256"]))
    labels = sorted(values(root, "scores", ["caption_id", "label"], "caption"))
    for node, kind in PURE + POOL:
        damage(pick(root, node, kind)[2], "flip")
    assert len(upkeep.verify(local(root))) == len(PURE + POOL)
    for _ in range(3):  # what was made from a lost pool part can only be made anew once the pool is mended
        print(sluice("verify", root, "--repair"))
        inline(case.dag, root, retry=["pool"])
    assert sluice("verify", root)[0] == 0
    check(root, rotten=True)
    assert sorted(values(root, "pool", ["uid", "status", "sha256"])) == before
    assert sorted(values(root, "scores", ["caption_id", "label"], "caption")) == labels


@pytest.mark.parametrize(
    ("kind", "how"),
    [*(("generations", how) for how in HOW), ("runs", "cut"), ("runs", "delete")],
)
def test_a_damaged_record_is_named_with_its_remedy_which_works(case: Case, kind: str, how: str) -> None:
    root = f"{case.folder}/root"
    inline(case.dag, root)
    inline(tiny(case.folder, "scores.factor=3"), root)
    path = sorted(
        path
        for path in files(root, "**/*.json")
        if (path.parent.name == kind and "shards" in str(path)) or (kind == "runs" and path.parent.name == kind)
    )[-1]
    damage(path, how)
    code, said = sluice("verify", root)
    if how != "delete":
        assert code != 0
        assert str(path) in said
    sluice("verify", root, "--repair")
    if sluice("verify", root)[0]:
        assert "delete it" in said or "it was collected" in said
        path.unlink(missing_ok=True)
    inline(tiny(case.folder, "scores.factor=3"), root)
    inline(case.dag, root)
    assert hashes(root) == case.calm
    check(root)

"""`sluice train` outside a DAG, and `sluice recipes`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from models.recipe import Recipe, shipped
from pipeline.cli import main
from pipeline.records import Generation, Run
from pipeline.store import Store
from tests.pools import write_run
from tests.stages.train.conftest import write_shards


def sluice(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False, terminal_width=200)


@pytest.fixture
def root(store: Store, shards: Generation) -> str:
    write_run(store, ["shards"])
    return store.root


def test_it_trains_on_the_shards_of_a_run_and_says_where_the_model_is(root: str, recipe: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    done = sluice("train", root, "--node", "shards", "--recipe", recipe, "--out", out, "--samples", "16")
    assert done.exit_code == 0
    assert f"sluice evaluate {out}/model" in done.output
    said = json.loads((tmp_path / "out" / "model" / "training.json").read_text())
    assert said["samples"] == 16
    assert said["lineage"]["shards"]["shards"]["samples"] == 20


def test_a_training_that_has_ended_makes_a_model_of_its_best_checkpoint(root: str, recipe: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = ("train", root, "--node", "shards", "--recipe", recipe, "--out", str(out), "--samples", "32")
    more = ("--set", "checkpoint_every=8", "--set", "keep=9")
    assert sluice(*call, *more).exit_code == 0
    marks = {path: json.loads(path.read_text()) for path in out.glob("checkpoints/*/complete.json")}
    assert sorted(mark["samples"] for mark in marks.values()) == [8, 16, 24, 32]
    last = load_file(out / "model" / "model.safetensors")
    for path, mark in marks.items():
        if mark["samples"] == 16:
            mark["facts"]["loss"] = 0.001
            path.write_text(json.dumps(mark))
    assert sluice(*call, *more, "--set", "export=best").exit_code == 0
    said = json.loads((out / "model" / "training.json").read_text())
    assert (said["samples"], said["exported"]) == (32, 16)
    best = load_file(out / "model" / "model.safetensors")
    assert any(not torch.equal(best[name], value) for name, value in last.items())


def test_shards_that_only_another_run_made_are_told_with_that_run(store: Store, recipe: str, tmp_path: Path) -> None:
    for node in ("shards", "books", "web"):
        write_shards(store, node, 20)
    for nodes in (["books"], ["books", "web"], ["books"], ["shards", "kept"], ["shards"]):
        if "kept" in nodes:  # a run that left what is not there any more
            store.add_run(Run(id="", dag="demo", text="", generations={"books": 1, "shards": 1, "kept": 9}))
        else:
            write_run(store, nodes)

    def told(*arguments: str) -> str:
        done = sluice("train", store.root, "--recipe", recipe, "--out", str(tmp_path / "out"), *arguments)
        assert (done.exit_code, done.output.count("\n")) == (2, 1)
        return done.output.strip()

    def refused(node: str, run: str = "0005") -> str:
        return f"error: --node {node!r} made no shards in run {run}; "

    assert told("--node", "books") == refused("books") + "run 0003 did: --run 0003"
    assert told("--node", "shards", "--run", "1") == refused("shards", "0001") + "run 0005 did: --run 0005"
    assert told("--node", "web", "--node", "books") == refused("web") + "run 0002 did: --run 0002"
    apart = refused("books") + "run 0003 did, but none made those of all: shards, books"
    assert told("--node", "shards", "--node", "books") == apart
    mistyped = "error: --node 'book' made no shards; did you mean 'books'?"
    assert told("--node", "book") == mistyped
    assert told("--node", "books", "--node", "book") == mistyped, "though books were made in another run"
    assert told("--node", "nothing") == "error: --node 'nothing' made no shards; there are: books, shards, web"
    books = ("--recipe", recipe, "--samples", "8", "--node", "books")
    assert sluice("train", store.root, "--out", str(tmp_path / "out"), *books, "--run", "0003").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--node", "shard"], "--node 'shard' made no shards; did you mean 'shards'"),
        (["--node", "shards", "--set", "optimizer.rate=1"], "unknown key 'optimizer.rate'"),
        (["--node", "shards", "--tiny"], "has no `tiny` overlay"),
        (
            ["--node", "shards", "--set", "objectives=[models.objectives.language.NextToken]"],
            "error: objectives: models.objectives.language.NextToken needs labels, logits, and "
            "models.towers.two_towers.TwoTowers gives image, text; take another model or objective\n",
        ),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    root: str, recipe: str, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    done = sluice("train", root, "--recipe", recipe, "--out", str(tmp_path / "out"), *arguments)
    assert done.exit_code == 2
    assert expected in done.output
    assert not (tmp_path / "out").exists()


def test_every_recipe_that_is_shipped_is_listed_and_holds_together_at_both_sizes() -> None:
    shown = sluice("recipes").output
    for name in shipped():
        assert name in shown
        full, tiny = Recipe.load(name), Recipe.load(name, tiny=True)
        assert tiny.samples < full.samples
        assert full.about

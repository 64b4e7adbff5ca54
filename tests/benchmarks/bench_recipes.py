"""Does every recipe of two towers learn at its tiny size? On captions of the small local web, asked about other scenes.

    make bench ARGS=recipes

Clean pages of simple scenes are downloaded and sharded as a DAG does it, and every recipe is trained as it is shipped.
The tower that LiT locks is CLIP's, which learned on the same pairs. All are asked for the images of captions and
for the colours of backgrounds.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from models.evaluate.metric import Metric
from models.evaluate.run import evaluate
from models.recipe import Recipe, shipped
from models.train.loop import train
from tests.benchmarks.figures import Figure

PAGES, SEED, ASKED = 4_000, 17, 400
PORT = 18_083
TEXT = """
dag: recipes
nodes:
  urls: {steps: [{stages.ingest.UrlTables: {files: FILES, caption: alt, rows_per_part: 500}}]}
  pool:
    from: urls
    steps:
      - stages.download.Download: {side: 128, timeout_s: 5, allow_private_hosts: ["127.0.0.1:PORT", "localhost:PORT"]}
  kept: {from: pool, steps: [{stages.select.Select: {rules: [downloaded: status = 'success']}}]}
  shards: {from: [pool, kept], steps: [{stages.shard.WebDataset: {samples_per_shard: 1000, shuffle: true}}]}
"""
TOWER = "clip-vit-b32"
LOCKED = "model={models.towers.two_towers.TwoTowers: {pretrained: {vision: TOWER}, config: {vision_config: null}}}"
TOLD = {"image_retrieval_recall@5": 2.0, "acc1": None}
"""Metrics, and how many times what guessing gives they are to be at least."""


def measure() -> list[Figure]:
    names = [name for name in shipped() if Recipe.load(name).model.path.endswith(".TwoTowers")]
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        folder = Path(name)
        data = {"shards": str(curated(folder))}
        figures = []
        for recipe in sorted(names, key=lambda name: name != TOWER):
            settings = [LOCKED.replace("TOWER", str(folder / TOWER / "model"))] if recipe == "lit" else []
            out = str(folder / recipe)
            trained = train(Recipe.load(recipe, tiny=True, overrides=settings), data, out)
            assert trained.model is not None
            sets = {one: str(folder / "sets" / one) for one in ("grounds", "retrieval")}
            metrics = evaluate(trained.model, sets, tasks=["zeroshot_classification", "zeroshot_retrieval"])
            figures += compared(recipe, metrics)
            print(*(f"{one.name} {one.shown} {one.note}" for one in figures[-2:]), sep="\n", file=sys.stderr)
        return figures


def curated(folder: Path) -> Path:
    """The shards of the web's pages, with the sets beside them."""
    dag, web, root = folder / "recipes.yaml", folder / "web", folder / "root"
    dag.write_text(TEXT.replace("FILES", str(web / "urls.parquet")).replace("PORT", str(PORT)))
    asked = ["--samples", str(ASKED), "--sets", "grounds", "retrieval", "--scenes", "simple"]
    served = ["--pages", str(PAGES), "--seed", str(SEED), "--mix", "clean", "--scenes", "simple", "--port", str(PORT)]
    sluice = [sys.executable, "-m", "pipeline", "run", str(dag), str(root)]
    key = ["--key", str(folder / "key/key.parquet")]
    commands = (
        ["infra.miniweb.sets", str(folder / "sets"), *asked],
        ["infra.miniweb", str(web), *served, *key, "--", *sluice],
    )
    for command in commands:
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-2000:])
    return root / "shards"


def compared(recipe: str, metrics: Sequence[Metric]) -> list[Figure]:
    found = {metric.metric: metric for metric in metrics}
    figures = []
    for name, at_least in TOLD.items():
        metric = found[name]
        assert metric.chance
        note = f"{metric.value:.1%} ± {metric.standard_error or 0:.1%}; chance {metric.chance:.1%}"
        named = f"{recipe}, {metric.set}: {name}, times chance"
        figures.append(Figure(named, metric.value / metric.chance, "", at_least=at_least, note=note))
    return figures

"""timm's towers: in a process of its own, where a torchvision is found; and what is said where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers.utils.import_utils import is_timm_available

from models.recipe import Recipe
from models.towers.two_towers import TwoTowers
from models.towers.vit import VisionClassifier

HERE, PROJECT = Path(__file__).parent, Path(__file__).parents[3]
FOLDER = Path(os.environ.get("TIMM", PROJECT / ".timm"))


@pytest.mark.skipif(not (FOLDER / "timm").is_dir(), reason=f"no timm in {FOLDER}; .ci/run puts one there")
def test_with_timm() -> None:
    """`with_timm.py`. Not in this process: transformers would take the stand-in for torchvision in other tests, too."""
    paths = os.pathsep.join(map(str, (PROJECT, HERE / "stand_in", FOLDER)))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / "with_timm.py")],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.skipif(is_timm_available(), reason="timm is installed")
def test_without_timm_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    remedy = r"timm, or a torchvision .* is not installed; `.venv/bin/pip install -e '.\[timm\]'`"
    timm = {"model_type": "timm_wrapper", "architecture": "resnet18"}
    with pytest.raises(ValueError, match=remedy):
        TwoTowers({"model_type": "vision-text-dual-encoder", "vision_config": timm})
    with pytest.raises(ValueError, match=remedy):
        TwoTowers({"model_type": "vision-text-dual-encoder"}, pretrained={"vision": "timm/resnet18.a1_in1k"})
    with pytest.raises(ValueError, match=remedy):
        VisionClassifier(timm)


def test_the_recipe_of_the_readme_is_one() -> None:
    section = (PROJECT / "models/README.md").read_text().split("## Image towers of timm's")[1].split("\n## ")[0]
    recipe = Recipe.parse(section.split("```yaml")[1].split("```")[0], "mine")
    config = recipe.model.parameters["config"]
    assert config["vision_config"]["architecture"] == "convnext_tiny"
    with pytest.raises(ValueError, match=r"beside pretrained\.vision = 'timm/other', which has a config of its own"):
        recipe.model.build(pretrained={"vision": "timm/other"})

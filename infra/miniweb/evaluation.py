"""The evaluation set of a web: a folder of images that no training set may hold, in the layout of imagefolder.

`images/0000.jpg` …, and `metadata.jsonl` with a line for each: `file_name`, five `captions`, `groups`, `background`,
`written`.
https://huggingface.co/docs/datasets/image_dataset describes the layout.
"""

import json
from dataclasses import asdict
from pathlib import Path

from infra.miniweb.plan import Plan
from infra.miniweb.render import jpeg


def write(plan: Plan, folder: Path) -> None:
    """Write the whole set; some of its images are leaked into the pages of the plan."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as lines:
        for number in range(plan.evaluation):
            scene, name = plan.evaluation_scene(number), f"images/{number:04d}.jpg"
            (folder / name).write_bytes(jpeg(scene))
            facts = {
                "groups": [asdict(group) for group in scene.groups],
                "background": scene.colour,
                "written": scene.written,
            }
            captions = [caption.text for caption in plan.evaluation_captions(number)]
            entry = {"file_name": name, "captions": captions, **facts}
            print(json.dumps(entry), file=lines)

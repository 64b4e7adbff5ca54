"""open_clip's own reader reads the shards: `open_clip_train.data.get_wds_dataset`, in a process of its own.

    pip install --no-deps --target .open_clip open_clip_torch==3.3.0 webdataset==0.2.86

It pins an older webdataset than this project does, so both lie in a folder of their own, `.open_clip` in the
repository (`.ci/run` makes it) or the one that OPEN_CLIP names; without it the test is skipped.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.export import export
from pipeline.export.options import Options
from tests.pipeline.test_export import KEPT
from tests.takedowns import go, picture

OPEN_CLIP = Path(os.environ.get("OPEN_CLIP", Path(__file__).parents[2] / ".open_clip"))
READ = """
import json, sys, types
from argparse import Namespace
for name in ("torchvision", "torchvision.datasets"):  # named at the top of its module, and not used for shards
    sys.modules[name] = types.ModuleType(name)
sys.modules["torchvision"].datasets = sys.modules["torchvision.datasets"]
import numpy as np
from open_clip_train.data import get_wds_dataset

if __name__ == "__main__":
    shards, samples = sys.argv[1], int(sys.argv[2])
    both = {"data": shards, "num_samples": samples}
    args = Namespace(**{f"{split}_{name}": value for split in ("train", "val") for name, value in both.items()},
        train_data_upsampling_factors=None, dataset_resampled=False, seed=0, batch_size=4, world_size=1, workers=1)
    read = {}
    for train in (False, True):
        found = get_wds_dataset(args, lambda image: np.asarray(image.convert("RGB")).mean((0, 1)), train,
            tokenizer=lambda text: [text])
        read["train" if train else "val"] = [
            [text, colour.tolist()] for colours, texts in found.dataloader for colour, text in zip(colours, texts)
        ]
    print(json.dumps(read))
"""


@pytest.mark.skipif(not (OPEN_CLIP / "open_clip_train").is_dir(), reason=f"no open_clip in {OPEN_CLIP}: see above")
def test_its_reader_gives_every_caption_with_its_image_once(tmp_path: Path) -> None:
    root, program = str(tmp_path / "root"), tmp_path / "read.py"
    go(Path(root))
    export(root, "kept", "hf", str(tmp_path / "out"), options=Options(copy_shards=True))
    sizes = json.loads((tmp_path / "out/data/sizes.json").read_text())
    names = sorted(name.removesuffix(".tar") for name in sizes)
    program.write_text(READ)
    shards = f"{tmp_path}/out/data/{{{names[0]}..{names[-1]}}}.tar"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", program, shards, str(len(KEPT))],
        env={**os.environ, "PYTHONPATH": str(OPEN_CLIP)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    wanted = [(f"secret {n} ", np.asarray(Image.open(io.BytesIO(picture(n)))).mean((0, 1)).tolist()) for n in KEPT]
    assert len(read["val"]) == sum(sizes.values()) == len(KEPT)
    for split in ("val", "train"):  # whole batches of a training may repeat some
        for begun, colour in wanted:
            assert colour in [told for text, told in read[split] if text.startswith(begun)]

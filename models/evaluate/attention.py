"""Where an image tower looks: the attention of the class token in the last layer, a picture for every head.

    python -m models.evaluate.attention dino/model picture.jpg --out maps

As Caron et al. 2021 draw it (figures 1 and 3): objects stand out of the maps of a DINO that was trained long enough.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoModel
from transformers.utils import logging

from models.data.images import opened
from models.towers.image_encoder import POOLED
from models.towers.preprocess import Preprocessing

KINDS = (*POOLED, "vit_msn", "beit", "dinov2", "dinov2_with_registers", "dinov3_vit")
"""Of transformers, those whose first token is the class token and whose last ones are the patches."""
Maps = npt.NDArray[np.float32]
SIDE = 192
"""px of a map as it is drawn."""
GAP = 4
COLD, WARM, HOT = (20, 12, 60), (220, 70, 40), (255, 245, 170)
"""Colours of no attention, half of the most, and the most."""


class Looker:
    """An image tower that says where it looks."""

    def __init__(self, model: Any, preprocessing: Preprocessing) -> None:
        self._model = model.eval().requires_grad_(False)
        self._preprocessing = preprocessing

    @classmethod
    def load(cls, folder: Path) -> Looker:
        """Raises `ValueError` for a folder that holds no image tower with square patches and a class token."""
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if said.get("model_type") not in KINDS:
            raise ValueError(f"{folder} holds a {said.get('model_type')!r}; expected one of {', '.join(KINDS)}")
        more = {"add_pooling_layer": False} if said["model_type"] in POOLED else {}
        # Other implementations than `eager` do not tell what they attended to.
        model = AutoModel.from_pretrained(
            folder,
            attn_implementation="eager",
            **more,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
        return cls(model, Preprocessing.load(folder))

    @torch.inference_mode()
    def maps(self, image_hwc: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], Maps]:
        """The image as the tower sees it, uint8 (side, side, 3), and (heads, rows, columns): how much of each head's
        attention every patch has; what is left to 1 is that of the class token and of other tokens that are no patches
        (DeiT's distillation token, registers)."""
        seen_hwc = self._preprocessing(image_hwc)
        pixels_nchw = self._preprocessing.normalise(torch.from_numpy(seen_hwc.copy())[None]).permute(0, 3, 1, 2)
        found = self._model(pixel_values=pixels_nchw, output_attentions=True).attentions[-1]
        patch = int(self._model.config.patch_size)
        rows, columns = seen_hwc.shape[0] // patch, seen_hwc.shape[1] // patch
        maps: Maps = found[0, :, 0, -rows * columns :].reshape(-1, rows, columns).float().numpy()
        return seen_hwc, maps


def drawn(seen_hwc: npt.NDArray[np.uint8], maps_hrc: Maps) -> Image.Image:
    """In a row: the image, the mean over the heads, and every head; each map from its least to its most."""
    tiles = [Image.fromarray(seen_hwc).resize((SIDE, SIDE), Image.Resampling.BICUBIC)]
    tiles += [_coloured(one) for one in (maps_hrc.mean(axis=0), *maps_hrc)]
    sheet = Image.new("RGB", (len(tiles) * (SIDE + GAP) - GAP, SIDE), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number * (SIDE + GAP), 0))
    return sheet


def _coloured(map_rc: Maps) -> Image.Image:
    share_rc = (map_rc - map_rc.min()) / max(float(np.ptp(map_rc)), 1e-12)
    colours = [np.interp(share_rc, (0, 0.5, 1), levels) for levels in zip(COLD, WARM, HOT, strict=True)]
    return Image.fromarray(np.stack(colours, -1).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.NEAREST)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", default=Path("maps"), type=click.Path(file_okay=False, path_type=Path), help="For the pictures.")
def main(model: Path, images: Sequence[Path], out: Path) -> None:
    """Draw where MODEL, a folder with an image tower, looks in every IMAGE: one PNG each."""
    try:
        looker = Looker.load(model)
        out.mkdir(parents=True, exist_ok=True)
        for path in images:
            with opened(path.read_bytes()) as image:
                sheet = drawn(*looker.maps(np.asarray(image.convert("RGB"))))
            sheet.save(out / f"{path.stem}.png")
            click.echo(out / f"{path.stem}.png")
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main(prog_name="python -m models.evaluate.attention")

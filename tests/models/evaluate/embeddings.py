"""Made-up embeddings, the same for tests and for golden figures."""

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]


def unit(rows: npt.NDArray[np.floating]) -> Rows:
    scaled: Rows = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


def correlated(images: int, texts: int, width: int, seed: int) -> tuple[Rows, Rows, npt.NDArray[np.int64]]:
    """Images, texts and whose they are, in order: a text is its image, and noise; every image has one or more."""
    dice = np.random.default_rng(seed)
    owners = np.sort(np.concatenate([np.arange(images), dice.integers(0, images, texts - images)]))
    images_nd = unit(dice.standard_normal((images, width)).astype(np.float32))
    noise_md = unit(dice.standard_normal((texts, width)).astype(np.float32))
    return images_nd, unit(images_nd[owners] + 1.5 * noise_md), owners


class Told:
    """An encoder of texts whose rows are given."""

    def __init__(self, rows: dict[str, Rows]) -> None:
        self.rows = rows

    def embed_texts(self, texts: list[str], batch: int) -> Rows:
        return np.stack([self.rows[text] for text in texts])

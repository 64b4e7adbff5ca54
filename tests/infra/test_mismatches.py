"""Mismatches are not told by colours or by words alone: simple classifiers that do learn easier things fail on them."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from infra.miniweb import Kind, Page, Plan
from infra.miniweb.captions import COLOUR_WORDS, SHAPE_WORDS, SIZE_WORDS, TEXTURE_WORDS
from infra.miniweb.render import PAINTS, paint
from infra.miniweb.scenes import COLOURS

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Pairs = tuple[Floats, Floats, Bools]
"""Histograms of the images, words of the captions, whether they are a mismatch."""

SYNONYMS = [set(words) for table in (COLOUR_WORDS, SHAPE_WORDS, SIZE_WORDS, TEXTURE_WORDS) for words in table.values()]
"""The colours come first, in the order of the histogram."""
RIDGES = (0.1, 1.0, 10.0, 100.0)
SIDE = 56
"""Of the longer side in px: enough for shares of colours."""
EACH = 450
"""Pairs of a class: half to learn from, half to be asked about."""


def histogram(page: Page) -> Floats:
    """Shares of the pixels nearest to each paint, (paints,), under a square root, which lifts small things."""
    scale = SIDE / max(page.scene.width, page.scene.height)
    small = replace(page.scene, width=round(scale * page.scene.width), height=round(scale * page.scene.height), blur=1)
    pixels_nc = np.asarray(paint(small)).reshape(-1, 3).astype(float)
    paints_pc = np.array([PAINTS[colour] for colour in COLOURS], float)
    nearest_n = (2 * pixels_nc @ paints_pc.T - (paints_pc**2).sum(1)).argmax(1)
    return np.sqrt(np.bincount(nearest_n, minlength=len(paints_pc)) / len(nearest_n))


def words(caption: str) -> Floats:
    """1 for everything that a caption names, whatever the synonym, and its length."""
    there = {word.removesuffix("s") for word in re.findall(r"[a-z]+", caption.lower())}
    return np.array([*(float(bool(there & synonyms)) for synonyms in SYNONYMS), len(caption) / 100])


def joint(histogram_p: Floats, words_w: Floats) -> Floats:
    """The colours, the words, every colour with every word, and how well the named colours are covered."""
    named_p = words_w[: len(histogram_p)]
    missing = [float((named_p * (histogram_p < least)).sum()) for least in (0.03, 0.06, 0.1, 0.15)]
    covered = [float((named_p * histogram_p).sum()), float(np.where(named_p > 0, histogram_p, 1.0).min())]
    product = np.outer(histogram_p, words_w).ravel()
    return np.concatenate([histogram_p, words_w, product, 10 * np.array([*missing, *covered])])


def auroc(scores: Floats, truth: npt.NDArray[np.bool_]) -> float:
    """The chance that a mismatch scores above a pair that matches; ties count half."""
    above, below = scores[truth][:, None], scores[~truth][None, :]
    return float((above > below).mean() + 0.5 * (above == below).mean())


def learned(features_nf: Floats, truth: Bools) -> float:
    """Ridge regression on even rows, AUROC on odd rows: the best of several ridges, so that no bad one flatters us."""
    spread_f = features_nf.std(0)
    scaled_nf = (features_nf - features_nf.mean(0)) / np.where(spread_f > 0, spread_f, 1)
    scaled_nf[:, -6:] *= 5  # the features that pool over colours may weigh more than single products
    train, test = slice(0, None, 2), slice(1, None, 2)
    gram_nn = scaled_nf[train] @ scaled_nf[train].T / scaled_nf.shape[1]
    found = []
    for ridge in RIDGES:
        dual_n = np.linalg.solve(gram_nn + ridge * np.eye(len(gram_nn)), truth[train] - 0.5)
        found.append(auroc(scaled_nf[test] @ (scaled_nf[train].T @ dual_n), truth[test]))
    return max(found)


def joined(pairs: Pairs) -> Floats:
    return np.array([joint(h, w) for h, w in zip(pairs[0], pairs[1], strict=True)])


@pytest.fixture(scope="module")
def seen() -> dict[Kind, list[tuple[Page, Floats]]]:
    """Pages with their histograms."""
    plan = Plan(6000, 29, mix="captions")
    first = {kind: list(zip(range(EACH), plan.of(kind), strict=False)) for kind in (Kind.CLEAN, Kind.MISMATCH)}
    return {kind: [(page, histogram(page)) for _, page in pages] for kind, pages in first.items()}


def shuffled(seen: dict[Kind, list[tuple[Page, Floats]]], false: Sequence[str]) -> Pairs:
    """Clean pairs, and the images of mismatches under these captions, shuffled."""
    captions = [*(page.caption for page, _ in seen[Kind.CLEAN]), *false]
    order = np.random.default_rng(3).permutation(len(captions))
    histograms_np = np.array([found for kind in (Kind.CLEAN, Kind.MISMATCH) for _, found in seen[kind]])
    truth = np.arange(len(captions)) >= len(seen[Kind.CLEAN])
    return histograms_np[order], np.array([words(caption) for caption in captions])[order], truth[order]


@pytest.fixture(scope="module")
def planted(seen: dict[Kind, list[tuple[Page, Floats]]]) -> Pairs:
    return shuffled(seen, [page.caption for page, _ in seen[Kind.MISMATCH]])


def test_colours_with_words_do_not_solve_the_mismatches(planted: Pairs) -> None:
    assert learned(joined(planted), planted[2]) < 0.7


def test_words_alone_say_nothing(planted: Pairs) -> None:
    assert learned(planted[1], planted[2]) < 0.58  # chance is 0.5, with a standard error of 0.02


def test_images_alone_say_nothing(planted: Pairs) -> None:
    assert learned(planted[0], planted[2]) < 0.58


def test_the_same_classifier_solves_captions_of_any_other_page(seen: dict[Kind, list[tuple[Page, Floats]]]) -> None:
    """The control: were captions exchanged at random, colours and words would tell."""
    clean = [page.caption for page, _ in seen[Kind.CLEAN]]
    exchanged = shuffled(seen, [*clean[1:], clean[0]])
    assert learned(joined(exchanged), exchanged[2]) > 0.8


def test_an_auroc_is_the_chance_of_the_right_order() -> None:
    truth = np.array([False, False, True, True])
    assert auroc(np.array([1.0, 2.0, 3.0, 4.0]), truth) == 1.0
    assert auroc(np.array([1.0, 3.0, 2.0, 4.0]), truth) == 0.75
    assert auroc(np.zeros(4), truth) == 0.5

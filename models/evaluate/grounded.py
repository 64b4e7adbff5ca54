"""What a model scores that looks at image and text together: matching, retrieval re-ranked by it, and captions.

As BLIP is evaluated (Li et al. 2022, section 5.1 and 5.2): of every query, the `RANKED` best by ITC are ranked anew by
ITM; captions are the best of a beam search over 3.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.captioners.decoding import Decoding
from models.evaluate.caption_scores import LONGEST, caption_scores
from models.evaluate.metric import Groups, Metric, mean
from models.evaluate.ranking import chance, hits
from models.evaluate.retrieval import KS
from models.towers.dual_encoder import Rows
from models.towers.preprocess import Pixels

if TYPE_CHECKING:
    from models.captioners.captioner import Captioner
    from models.towers.matcher import Matcher

MATCHING, RERANKED, CAPTIONING = "image_text_matching", "reranked_retrieval", "captioning"
TASKS = (MATCHING, RERANKED, CAPTIONING)
RANKED = 16
"""Items of a query that are ranked anew; BLIP takes 256 of Flickr30K's 5,000 and 128 of COCO's 25,000."""
CAPTIONS = Decoding(method="beam", beams=3, most_tokens=30, least_tokens=3)
Chunks = Iterable[Sequence[Pixels]]
"""The images of a set as `preprocessing` made them, in their order, of which only some are in memory at once."""


def abilities(folder: Path) -> frozenset[str]:
    """What the model in a folder can do: `embed` images and texts, tell what `match`es, `write`; `see` images alone,
    and `classify` them; `read` texts alone."""
    try:
        said = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        said = {}
    parts = [str(part) for part in said.get("architectures") or ()]
    if any(part.endswith("ForImageClassification") for part in parts):
        return frozenset({"see", "classify"})
    if "image_size" in said and not {"text_config", "vision_config"} & said.keys():
        return frozenset({"see"})
    if any(part.endswith("ForCausalLM") for part in parts):
        return frozenset({"read"})
    if said.get("model_type") != "blip":
        return frozenset({"embed"})
    found = {"write"} if "BlipForConditionalGeneration" in parts else set()
    return frozenset(found | ({"embed", "match"} if "BlipForImageTextRetrieval" in parts else set()))


def matching(
    name: str, model: Matcher, images: Chunks, captions: Sequence[Sequence[str]], batch: int
) -> Iterator[Metric]:
    """Whether the first caption of an image is told from the first one of the next image, which says something else."""
    texts, image_of, right, groups = [], [], [], []
    for row, own in enumerate(captions):
        other = next((o[0] for o in (*captions[row + 1 :], *captions[:row]) if o[0] not in own), None)
        for text, fits in ((own[0], True), (other, False)):
            if text is not None:
                texts.append(text)
                image_of.append(row)
                right.append(fits)
                groups.append(row)
    scores_n = _probabilities(model, images, texts, np.array(image_of), batch)
    found = ((scores_n >= 0.5) == np.array(right)).astype(np.float64)
    yield Metric(name, MATCHING, "itm_accuracy", *mean(found, np.array(groups)), 0.5, len(found))


def selection(
    name: str, model: Matcher, images: Chunks, captions: Sequence[Sequence[str]], batch: int
) -> Iterator[Metric]:
    """Whether the first text of an image, the right one, fits best of all its texts."""
    owners = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
    scores = _probabilities(model, images, [text for own in captions for text in own], owners, batch)
    bounds = np.concatenate([[0], np.cumsum([len(own) for own in captions])])
    found, guessed = np.empty(len(captions)), np.empty(len(captions))
    for row in range(len(captions)):
        own = scores[bounds[row] : bounds[row + 1]]
        found[row] = hits(own[None], np.arange(len(own))[None] == 0, (1,))[0, 0]
        guessed[row] = 1 / len(own)
    yield Metric(name, MATCHING, "text_acc", *mean(found), float(guessed.mean()), len(found))


def reranked(
    name: str,
    model: Matcher,
    images: Chunks,
    images_nd: Rows,
    texts: Sequence[str],
    texts_md: Rows,
    owners: Groups,
    batch: int,
) -> Iterator[Metric]:
    """Recall both ways, where the best by ITC come first in the order of ITM."""
    places, captions = np.arange(len(images_nd)), np.bincount(owners, minlength=len(images_nd))
    ways = {
        "image_retrieval": (texts_md @ images_nd.T, owners, places, owners, np.ones(len(texts), np.int64)),
        "text_retrieval": (images_nd @ texts_md.T, places, owners, places, captions),
    }
    tops, text_of, image_of = {}, [], []
    for way, (cosines_qi, *_) in ways.items():
        best = min(RANKED, cosines_qi.shape[1])
        tops[way] = top_qk = np.argpartition(-cosines_qi, best - 1, axis=1)[:, :best]
        queries_qk = np.broadcast_to(np.arange(len(cosines_qi))[:, None], top_qk.shape)
        text_qk, image_qk = (queries_qk, top_qk) if way == "image_retrieval" else (top_qk, queries_qk)
        text_of.append(text_qk.ravel())
        image_of.append(image_qk.ravel())
    told = [texts[row] for row in np.concatenate(text_of)]
    # Both ways together, so that an image is looked at once for all its pairs.
    scores = _probabilities(model, images, told, np.concatenate(image_of), batch)
    found = dict(zip(ways, np.split(scores, [len(text_of[0])]), strict=True))
    for way, (cosines_qi, query_owner, item_owner, groups, right) in ways.items():
        ranked_qi = cosines_qi.copy()
        np.put_along_axis(ranked_qi, tops[way], 2 + found[way].reshape(tops[way].shape), 1)  # above every cosine
        hit_kq = hits(ranked_qi, query_owner[:, None] == item_owner[None], KS)
        for k, hit_q in zip(KS, hit_kq, strict=True):
            guessed = float(chance(cosines_qi.shape[1], right, k).mean())
            yield Metric(name, RERANKED, f"{way}_recall@{k}", *mean(hit_q, groups), guessed, len(hit_q))


def _probabilities(model: Matcher, images: Chunks, texts: Sequence[str], image_of: Groups, batch: int) -> Rows:
    """float32 (texts,): the probability by ITM of every text and its image, in one pass over the images."""
    order = np.argsort(image_of, kind="stable")
    found = np.empty(len(texts), np.float32)
    start = 0
    for some in images:
        end = start + len(some)
        of_these = order[slice(*np.searchsorted(image_of, [start, end], sorter=order))]
        if len(of_these):
            seen, places = np.unique(image_of[of_these], return_inverse=True)
            asked = [texts[row] for row in of_these]
            found[of_these] = model.scores([some[row - start] for row in seen], asked, places, batch)[:, 0]
        start = end
    return found


def captioning(
    name: str, model: Captioner, images: Chunks, references: Sequence[Sequence[str]], batch: int
) -> Iterator[Metric]:
    """BLEU, ROUGE-L and CIDEr of the captions that it writes; CIDEr is in the unit of papers divided by 100."""
    written: list[str] = []
    for some in images:
        uids = [str(len(written) + row) for row in range(len(some))]
        told = model.write(some, uids, CAPTIONS, batch=batch, prepared=model.preprocessing is not None)
        written += [captions[0].text for captions in told]
    found = caption_scores(written, references)
    count = len(written)
    for size in range(LONGEST):
        yield Metric(name, CAPTIONING, f"bleu_{size + 1}", found.bleu[size], None, None, count)
    yield Metric(name, CAPTIONING, "rouge_l", *mean(found.rouge_l_each), None, count)
    yield Metric(name, CAPTIONING, "cider", *mean(found.cider_each), None, count)

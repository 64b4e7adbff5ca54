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
Images = Iterable[Sequence[Pixels]]
"""All images of a set in their order, some at a time: nobody holds the 25,000 of COCO at once."""
CAPTIONS = Decoding(method="beam", beams=3, most_tokens=30, least_tokens=3)


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


def _scores(model: Matcher, images: Images, texts: Sequence[str], image_of: Groups, batch: int) -> Rows:
    """float32 (texts,): the probability by ITM of every text and its image. Images without a text are not looked at."""
    order = np.argsort(image_of, kind="stable")
    found = np.empty(len(texts), np.float32)
    first = 0
    for some in images:
        start, end = np.searchsorted(image_of, [first, first + len(some)], sorter=order)
        rows = order[start:end]
        if len(rows):
            seen, place = np.unique(image_of[rows] - first, return_inverse=True)
            told = [texts[row] for row in rows]
            found[rows] = model.scores([some[image] for image in seen], told, place, batch)[:, 0]
        first += len(some)
    return found


def matching(
    name: str, model: Matcher, images: Images, captions: Sequence[Sequence[str]], batch: int
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
    scores_n = _scores(model, images, texts, np.array(image_of), batch)
    found = ((scores_n >= 0.5) == np.array(right)).astype(np.float64)
    yield Metric(name, MATCHING, "itm_accuracy", *mean(found, np.array(groups)), 0.5, len(found))


def selection(
    name: str, model: Matcher, images: Images, captions: Sequence[Sequence[str]], batch: int
) -> Iterator[Metric]:
    """Whether the first text of an image, the right one, fits best of all its texts."""
    owners = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
    scores = _scores(model, images, [text for own in captions for text in own], owners, batch)
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
    images: Images,
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
    asked, pairs = {}, []
    for way, (cosines_qi, *_) in ways.items():
        best = min(RANKED, cosines_qi.shape[1])
        top_qk = np.argpartition(-cosines_qi, best - 1, axis=1)[:, :best]
        queries_qk = np.broadcast_to(np.arange(len(cosines_qi))[:, None], top_qk.shape)
        asked[way] = top_qk
        pairs.append((queries_qk, top_qk) if way == "image_retrieval" else (top_qk, queries_qk))
    text_p, image_p = (np.concatenate([one.ravel() for one in each]) for each in zip(*pairs, strict=True))
    # Of both ways at once: an image is looked at once for all its pairs.
    found_p = _scores(model, images, [texts[row] for row in text_p], image_p, batch)
    for way, (cosines_qi, query_owner, item_owner, groups, right) in ways.items():
        top_qk = asked[way]
        found, found_p = found_p[: top_qk.size], found_p[top_qk.size :]
        ranked_qi = cosines_qi.copy()
        np.put_along_axis(ranked_qi, top_qk, 2 + found.reshape(top_qk.shape), 1)  # above every cosine
        hit_kq = hits(ranked_qi, query_owner[:, None] == item_owner[None], KS)
        for k, hit_q in zip(KS, hit_kq, strict=True):
            guessed = float(chance(cosines_qi.shape[1], right, k).mean())
            yield Metric(name, RERANKED, f"{way}_recall@{k}", *mean(hit_q, groups), guessed, len(hit_q))


def captioning(
    name: str, model: Captioner, images: Images, references: Sequence[Sequence[str]], batch: int
) -> Iterator[Metric]:
    """BLEU, ROUGE-L and CIDEr of the captions that it writes; CIDEr is in the unit of papers divided by 100."""
    texts: list[str] = []
    for some in images:
        uids = [str(len(texts) + row) for row in range(len(some))]
        written = model.write(some, uids, CAPTIONS, batch=batch, prepared=model.preprocessing is not None)
        texts += [captions[0].text for captions in written]
    found = caption_scores(texts, references)
    count = len(texts)
    for size in range(LONGEST):
        yield Metric(name, CAPTIONING, f"bleu_{size + 1}", found.bleu[size], None, None, count)
    yield Metric(name, CAPTIONING, "rouge_l", *mean(found.rouge_l_each), None, count)
    yield Metric(name, CAPTIONING, "cider", *mean(found.cider_each), None, count)

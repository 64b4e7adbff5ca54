"""Evaluation sets of scenes that no page of any web shows, in the layout that CLIP_benchmark reads.

    python -m infra.miniweb.sets FOLDER --samples 500 --seed 0
    python -m models.evaluate MODEL FOLDER

`grounds`, `colours` and `shapes` ask for a class (zero-shot, or with their `train` split by a linear probe), from the
easiest to the hardest; `retrieval` for the image of a caption and the captions of an image; `binding`, `counting` and
`relations` for the right caption among wrong ones that differ in just that. `questions` and `verify`, for models that
write, are made where `--sets` names them. The same arguments give the same bytes.
"""

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from pathlib import Path

from infra.miniweb import questions, vqa
from infra.miniweb.captions import with_article
from infra.miniweb.questions import Question, first
from infra.miniweb.render import jpeg
from infra.miniweb.scenes import COLOURS, CROWDS, SHAPES

CLASSES = {"grounds": COLOURS, "colours": COLOURS, "shapes": SHAPES}
ASKED = {
    "grounds": questions.ground,
    "colours": questions.colour,
    "shapes": questions.shape,
    "binding": questions.binding,
    "counting": questions.counting,
    "relations": questions.relations,
}
SETS = ("grounds", "colours", "shapes", "retrieval", "binding", "counting", "relations")
"""For models that compare an image with texts."""
ASKING = tuple(vqa.ASKS)
"""For models that write answers."""
TEMPLATES = {
    "grounds": ["on {c} background", "a picture with {c} backdrop", "against plain {c} background", "{c} background"],
    "shapes": [*(with_article(f"{colour} {{c}}") for colour in COLOURS), "A picture of a {c}.", "a large {c}"],
    "colours": [*(f"one {{c}} {shape}" for shape in SHAPES), "A picture of {c} circles.", "some {c} stars"],
}
"""Prompts for zero-shot classification, each of words that captions of the web have."""
KINDS = {"retrieval": "retrieval"} | dict.fromkeys(("binding", "counting", "relations"), "image_caption_selection")
"""What `dataset_type.txt` says; sets for classification have none."""
SHARD = 10_000
"""Samples of a tar, as CLIP_benchmark writes them."""


def write(
    folder: Path,
    samples: int,
    seed: int = 0,
    names: Sequence[str] = SETS,
    captions: int = 5,
    workers: Executor | None = None,
    scenes: str = "any",
) -> None:
    """Write the named sets, each into its folder; `captions` are those of an image in `retrieval`.

    `scenes`: how much is in them, as in a web's. `questions` and `verify` are always of simple ones.
    """
    for name in names:
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        if name in ASKING:
            _lines(place / "dataset_type.txt", ["vqa"])
            _lines(place / "vqa_prompt.txt", ["{question}"])
            _asking(place / "test", [vqa.question(name, seed, number) for number in range(samples)], workers)
            continue
        if name in KINDS:
            _lines(place / "dataset_type.txt", [KINDS[name]])
        else:
            _lines(place / "classnames.txt", CLASSES[name])
            _lines(place / "zeroshot_classification_templates.txt", TEMPLATES[name])
            _split(place / "train", _asked(f"{name}/train", seed, samples, scenes), CLASSES[name], workers)
        told = name == "retrieval"
        asked = questions.retrieval(seed, samples, captions, scenes) if told else _asked(name, seed, samples, scenes)
        _split(place / "test", asked, CLASSES.get(name, ()), workers)


def _asked(name: str, seed: int, samples: int, scenes: str) -> Iterator[Question]:
    return (first(name, seed, number, ASKED[name.partition("/")[0]], scenes) for number in range(samples))


def _split(folder: Path, asked: Iterable[Question], classes: Sequence[str], workers: Executor | None) -> None:
    """The tars of a split, and how many there are."""
    folder.mkdir(exist_ok=True)
    found = list(asked)
    for number, start in enumerate(range(0, len(found), SHARD)):
        part = found[start : start + SHARD]
        scenes = [question.scene for question in part]
        images = map(jpeg, scenes) if workers is None else workers.map(jpeg, scenes, chunksize=16)
        with tarfile.open(folder / f"{number}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, (question, image) in enumerate(zip(part, images, strict=True), start):
                _add(tar, f"s{key:07d}.jpg", image)
                if question.label is not None:
                    _add(tar, f"s{key:07d}.cls", str(classes.index(question.label)).encode())
                else:
                    text = "\n".join(caption.text for caption in question.captions)
                    _add(tar, f"s{key:07d}.txt", text.encode())
    _lines(folder / "nshards.txt", [str(-(-len(found) // SHARD))])


def _asking(folder: Path, asked: Sequence[vqa.Question], workers: Executor | None) -> None:
    """The one split of a set of questions."""
    folder.mkdir(exist_ok=True)
    for number, start in enumerate(range(0, len(asked), SHARD)):
        part = asked[start : start + SHARD]
        scenes = [question.scene for question in part]
        images = map(jpeg, scenes) if workers is None else workers.map(jpeg, scenes, chunksize=16)
        with tarfile.open(folder / f"{number}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, (question, image) in enumerate(zip(part, images, strict=True), start):
                said = {"question": question.text, "answers": question.answers, "type": question.kind}
                _add(tar, f"s{key:07d}.jpg", image)
                _add(tar, f"s{key:07d}.json", json.dumps(said).encode())
    _lines(folder / "nshards.txt", [str(-(-len(asked) // SHARD))])


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """With the date and the owner that every entry has: the bytes of a tar must not tell when it was written."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.miniweb.sets", description=__doc__.split("\n")[0])
    at_least_one = partial(_number, least=1)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where each set becomes a folder")
    parser.add_argument("--samples", type=at_least_one, default=500, help="images of each split (default 500)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other images (default 0)")
    known = (*SETS, *ASKING)
    told = f"of {', '.join(known)} (default all but {' and '.join(ASKING)})"
    parser.add_argument("--sets", nargs="+", choices=known, default=SETS, metavar="SET", help=told)
    parser.add_argument("--captions", type=at_least_one, default=5, help="of an image in `retrieval` (default 5)")
    parser.add_argument("--scenes", choices=CROWDS, default="any", help="how much is in them")
    parser.add_argument("--processes", type=partial(_number, least=0), default=0, help="that render, 0 for none")
    options = parser.parse_args(arguments)
    asked = options.folder, options.samples, options.seed, options.sets, options.captions
    if options.processes:
        with ProcessPoolExecutor(options.processes) as workers:
            write(*asked, workers, scenes=options.scenes)
    else:
        write(*asked, scenes=options.scenes)
    print(f"{len(options.sets)} sets of {options.samples:,} images each in {options.folder}", file=sys.stderr)
    return 0


def _number(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; expected {least} or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

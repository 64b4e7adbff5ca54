"""One loop for all systems, on one process or on many.

trained = train(Recipe.load("clip-vit-b32", tiny=True), {"shards": "root/shards"}, "out")
trained.model                                # out/model, which transformers loads

It goes on from the newest checkpoint in `out`. Where torch.distributed was initialised (torchrun, Ray Train), every
process calls it with the same arguments.
"""

from __future__ import annotations

import copy
import inspect
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from fsspec.core import url_to_fs

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoTokenizer

from models.recipe import Recipe, RecipeError
from models.train import flops, optimizer, state
from models.train.accumulate import System
from models.train.checkpoint import Checkpoint, Checkpoints
from models.train.finish import export
from models.train.guard import TrainingError
from models.train.meter import Row
from models.train.parallel import Place, compile_blocks, lighten
from models.train.progress import Board
from models.train.source import Shards, Source
from models.train.trainer import Report, Trainer
from models.trainable import Features, Objective, Trainable

Data = Mapping[str, Any]
"""Where every set of the recipe's mixture lies: a folder, a pattern, or a list of tars."""
FREE = frozenset({"about", "samples", "guard", "parallel", "checkpoint_every", "keep", "export"})
"""What a recipe may say otherwise than when the training began."""

MUST_AGREE: Mapping[str, frozenset[str]] = {"recipe": FREE, "lineage": frozenset({"funnels"}), "data": frozenset()}
"""Facts of a checkpoint in which it must agree with the training that goes on from it, but for these keys."""


@dataclass(frozen=True)
class Trained:
    """What became of a training."""

    model: str | None
    """The folder with the model; None where it was stopped before the end."""
    samples: int
    curve: Sequence[Row]
    """`samples`, `loss`, `learning_rate`, `samples_per_second` and more; means since the row before."""
    skipped: Mapping[str, int]
    """Samples that could not be used, by reason."""


def train(
    recipe: Recipe,
    data: Data,
    out: str,
    *,
    lineage: Mapping[str, Any] | None = None,
    resume: bool = True,
    report: Report | None = None,
    stop: Callable[[], bool] | None = None,
    watch: Callable[[int], None] | None = None,
    wandb: str | None = None,
    source: Source | None = None,
    weights: Mapping[str, str] | None = None,
) -> Trained:
    """Train a recipe, and write checkpoints and the model to `out`, a folder on any fsspec store.

    `lineage`: where the data comes from, for checkpoints, `training.json` and the model card. `resume`: False deletes
    the checkpoints. `report`: told of every checkpoint, may stop the training. `stop`: asked before every step.
    `watch`: told of the samples seen after every step, on the first process.
    `wandb`: a project of Weights & Biases to log to. `source`: instead of the recipe's own.
    `weights`: what the model begins with, a folder by the name of the model's parameter, such as `pretrained`; the
    tokenizer comes from there, too, where one lies beside them and the recipe names none; never with an image tower.

    Raises `RecipeError` and `DataError` for what cannot be, `TrainingError` for a loss that is no number, or jumps, and
    `Unreachable` for a store that does not answer.
    """
    weights = weights or {}
    if wandb is not None and find_spec("wandb") is None:
        raise RecipeError("wandb is not installed here; `pip install wandb`, or leave it out")
    place = Place.here()
    place.share_of(recipe.batch)
    checkpoints = Checkpoints(out, place, recipe.keep)
    with ExitStack() as stack:
        stack.callback(checkpoints.close)
        stack.enter_context(torch.random.fork_rng([place.device] if place.device.type == "cuda" else []))
        newest = checkpoints.newest() if resume else None
        facts = {"recipe": recipe.model_dump(mode="json"), "lineage": dict(lineage or {}), "code": state.code()}
        if newest is not None:  # before a tokenizer is trained on other data
            _same(newest, facts, out)
        if source is None:
            source = Shards(recipe, data, place, _tokenizer(recipe, weights, out, anew=newest is None))
        facts["data"] = source.content()
        if newest is not None:
            _same(newest, facts, out)

        system, works = _laid_out(recipe, source, place, weights)
        checkpoints.start(anew=not resume)  # not before all that a mistake in the arguments could stop
        if resume and checkpoints.newest() != newest:
            raise TrainingError(f"another training has gone on in {out} meanwhile; the same command goes on from there")
        if place.first and newest is None:
            _save_tokenizer(source.tokenizer, out)
        board = None
        if place.first:
            done = newest.samples if newest else 0
            board = stack.enter_context(Board(out, recipe.name, recipe.samples, done, facts["recipe"], wandb))
        trainer = Trainer(
            recipe,
            system,
            source,
            checkpoints,
            board,
            works=works,
            peak=flops.peak(place.device, system.bfloat16),
            facts=facts,
            report=report,
            stop=stop,
            watch=watch if place.first else None,
        )
        if newest is not None:
            trainer.restore(newest)
        trainer.run()
        skipped = place.added(trainer.skipped)
        model = None
        if trainer.samples >= trainer.end:
            said = _said(trainer, facts, skipped)
            if recipe.export == "best" and (best := checkpoints.best()) is not None:
                trainer.take(best)
                said["exported"] = best.samples
            model = _export(recipe, system, trainer, source, weights, said, out)
        return Trained(model, trainer.samples, tuple(trainer.curve), skipped)


def _laid_out(
    recipe: Recipe, source: Source, place: Place, weights: Mapping[str, str]
) -> tuple[System, list[flops.Work]]:
    """Model and objectives over the processes, and the operations of a sample in each phase."""
    system = _system(recipe, source, place, weights)
    works = _count(recipe, system, source)
    if recipe.parallel.checkpoint_activations:
        lighten(system.model)
    if recipe.parallel.compile:
        compile_blocks(system.model)
    place.spread(system.model, recipe.parallel.mode)
    return system, works


def _build(recipe: Recipe, source: Source, weights: Mapping[str, str]) -> Trainable:
    """The recipe's model, with the tokenizer where it asks for one. Raises `RecipeError`."""
    taken = inspect.signature(recipe.model.load()).parameters
    for name in weights:
        if name not in taken:
            raise RecipeError(f"weights.{name}: {recipe.model.path} takes {', '.join(taken)}, and nothing of that name")
    given = {"tokenizer": source.tokenizer} if "tokenizer" in taken else {}
    torch.manual_seed(recipe.seed)
    try:
        model: Trainable = recipe.model.build(**given, **weights)
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(f"model: {error}") from error
    if recipe.data.texts.turns == "apart":
        try:
            model.check_branches(recipe.data.texts.context)
        except ValueError as error:
            raise RecipeError(f"data.texts.turns = apart: {error}") from error
    places = getattr(model, "context", None)
    if places is not None and recipe.data.texts.context > places:  # the first long text may come after days
        raise RecipeError(f"data.texts.context = {recipe.data.texts.context}: the model has {places} places; lower it")
    said = recipe.data.images
    for name, used in getattr(model, "images", {}).items():
        if name not in said.model_fields_set and getattr(said, name) != used:
            raise RecipeError(
                f"data.images.{name}: the pretrained tower has seen {used}; say so, or what it shall be: by default "
                f"it is {getattr(said, name)}"
            )
    return model


def _objectives(recipe: Recipe) -> list[Objective]:
    """The recipe's objectives. Raises `RecipeError` for parameters that they, or torch, cannot have."""
    found: list[Objective] = []
    for term in recipe.objectives:
        path, said = term.objective.path, term.objective.parameters
        try:
            inspect.signature(term.objective.load()).bind(**said)
        except TypeError as error:
            raise RecipeError(f"objectives: {path}: {error}") from error
        try:
            found.append(term.objective.build())
        except ValueError as error:
            raise RecipeError(f"objectives: {path}: {_line(error)}") from error
        except RuntimeError as error:  # torch's, of a size below 0, which names no value
            raise RecipeError(f"objectives: {path} of {said}: {_line(error)}") from error
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _system(recipe: Recipe, source: Source, place: Place, weights: Mapping[str, str]) -> System:
    model = _build(recipe, source, weights).to(place.device)
    objectives = [objective.to(place.device) for objective in _objectives(recipe)]
    _fits(recipe, model, objectives)
    return System(
        model,
        objectives,
        [term.weight for term in recipe.objectives],
        place,
        bfloat16=recipe.precision == "bfloat16",
        seed=recipe.seed,
        shards=recipe.parallel.mode == "fsdp" and place.world > 1,
    )


def _fits(recipe: Recipe, model: Trainable, objectives: Sequence[Objective]) -> None:
    """Raise `RecipeError` where an objective reads a scalar that the model does not have."""
    taken, known = inspect.signature(recipe.model.load()).parameters, model.scalars()
    there = ", ".join(sorted(known)) or "no scalars"
    for term, objective in zip(recipe.objectives, objectives, strict=True):
        for name in sorted(objective.needs() - known.keys()):
            parameter = name.removeprefix("logit_")
            remedy = f"give {recipe.model.path} a `{parameter}` to begin with, or " if parameter in taken else ""
            raise RecipeError(
                f"objectives: {term.objective.path} needs {name}, and the model has {there}; "
                f"{remedy}take {'another' if remedy else 'a model that has it, or another'} objective"
            )


def _gives(recipe: Recipe, model: Trainable, objectives: Sequence[Objective], given: Set[str]) -> None:
    """Raise `RecipeError` where an objective reads features that are not among those given."""
    there = ", ".join(sorted(given)) or "no features"
    for term, objective in zip(recipe.objectives, objectives, strict=True):
        if missing := sorted(objective.reads() - given):
            helps = objective.remedy and model.optional.issuperset(missing)
            remedy = f"set {objective.remedy}, or " if helps else ""
            raise RecipeError(
                f"objectives: {term.objective.path} needs {', '.join(missing)}, and {recipe.model.path} gives "
                f"{there}; {remedy}take another model or objective"
            )


def _takes(recipe: Recipe, system: System, features: Features) -> None:
    """Raise `RecipeError` where an objective cannot work with features such as these, of few rows.

    Copies are asked, so that no queue and no centre learns of it. What gathers rows does so here, too: every process
    is to come by, as in a step.
    """
    for term, objective in zip(recipe.objectives, system.objectives, strict=True):
        try:
            with torch.no_grad():
                copy.deepcopy(objective)(features, system.model.scalars())
        except ValueError as error:
            raise RecipeError(f"objectives: {term.objective.path}: {error}") from error
        except RuntimeError:
            continue  # what compares all rows of a batch, as a stored matrix may, does not fit two of them


def _count(recipe: Recipe, system: System, source: Source) -> list[flops.Work]:
    """Operations of a sample in each phase. Raises `RecipeError` as `_gives` and `_takes`.

    Which features a model gives follows from its parameters and the data, too: it is seen on the rows that are counted.
    """
    trained = {name: own for name, own in system.model.named_parameters() if own.requires_grad}
    with closing(source.open(0)) as loader:
        whole = next(iter(loader))
    two = whole[flops.TILES].sum(1).argsort(descending=True)[:2] if flops.TILES in whole else slice(2)
    first = {name: column[two].to(system.place.device) for name, column in whole.items()}
    batch = source.ready(first)
    works, given = [], Features()

    def keep(model: Trainable, batch: object, features: Features) -> None:
        if not given:  # the first of the passes that are counted is of all that the rows hold
            given.update(
                {name: (rows.float() if rows.is_floating_point() else rows).detach() for name, rows in features.items()}
            )

    with system.model.register_forward_hook(keep):
        for phase in recipe.phases:
            optimizer.enter(system.model, trained, phase)
            optimizer.drop_patches(system.model, phase)
            given.clear()  # what a model gives may depend on what is trained
            works.append(flops.measure(system.model, batch))
            _gives(recipe, system.model, system.objectives, given.keys())
            _takes(recipe, system, given)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return works


def _said(trainer: Trainer, facts: Mapping[str, Any], skipped: Mapping[str, int]) -> dict[str, Any]:
    """What `training.json` tells."""
    place = trainer.place
    return {
        **facts,
        "samples": trainer.samples,
        "exported": trainer.samples,
        "seconds": trainer.seconds,
        "samples_per_second": trainer.samples / trainer.seconds if trainer.seconds else None,
        "processes": place.world,
        "device": torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else "cpu",
        "skipped": skipped,
        "left_out": sorted(trainer.left_out),
        "curve": trainer.curve,
    }


def _export(
    recipe: Recipe,
    system: System,
    trainer: Trainer,
    source: Source,
    weights: Mapping[str, str],
    said: Mapping[str, Any],
    out: str,
) -> str:
    averages = trainer.average.values if trainer.average is not None else {}
    learned = state.whole(state.parameters(system) | averages | state.buffers(system))
    folder = None
    if system.place.first:
        anew = System(_build(recipe, source, weights), _objectives(recipe), (), system.place)
        state.fill(anew, learned)
        folder = export([anew.model, *anew.objectives], source.tokenizer, recipe, said, out)
    told: str = system.place.told(folder)
    return told


# -- what lies in `out` ------------------------------------------------------------------------------------------------


def _same(newest: Checkpoint, facts: Mapping[str, Any], out: str) -> None:
    """Raise `RecipeError` where a checkpoint is of another training: of another recipe, or of other samples.

    How those were selected is only told: other rules may keep the same.
    """
    for name, free in MUST_AGREE.items():
        now = json.loads(json.dumps(facts.get(name)))
        then = newest.facts.get(name, now)
        if now is None:
            continue
        for key in sorted({*then, *now} - free):
            if _filled(then.get(key)) != _filled(now.get(key)):
                where, was, is_now = _parted(f"{name}.{key}", then.get(key), now.get(key))
                raise RecipeError(
                    f"{out} holds a training whose {where} was {_short(was)}, and now is {_short(is_now)}; take "
                    "another folder, or begin anew (--restart)"
                )


def _parted(where: str, then: Any, now: Any) -> tuple[str, Any, Any]:
    """The first setting in which two that differ do, and what it is in each."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in sorted({*then, *now}):
            if _filled(then.get(key)) != _filled(now.get(key)):
                return _parted(f"{where}.{key}", then.get(key), now.get(key))
    return where, then, now


def _filled(value: Any) -> Any:
    """Without what is null: a setting that came with a later version, and is not made use of, changes no training."""
    if isinstance(value, Mapping):
        return {key: _filled(part) for key, part in value.items() if part is not None}
    return [_filled(part) for part in value] if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _save_tokenizer(tokenizer: Any, out: str) -> None:
    """Beside the checkpoints, so that what goes on reads as what began."""
    if tokenizer is None:
        return
    fs, path = url_to_fs(f"{out.rstrip('/')}/tokenizer")
    with tempfile.TemporaryDirectory(prefix="sluice-tokenizer-") as local:
        tokenizer.save_pretrained(local)
        fs.makedirs(path, exist_ok=True)
        for file in Path(local).iterdir():
            fs.put_file(str(file), f"{path}/{file.name}")


def _tokenizer(recipe: Recipe, weights: Mapping[str, str], out: str, anew: bool) -> Any:
    """That of the training that goes on, else of the weights that it begins with; None where the recipe has its own."""
    if not anew:
        return _load_tokenizer(out)
    if recipe.data.texts.tokenizer is None:
        for name, folder in weights.items():
            if name != "vision" and (Path(folder) / "tokenizer_config.json").is_file():
                return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return None


def _load_tokenizer(out: str) -> Any:
    """None where the training has none."""
    fs, path = url_to_fs(f"{out.rstrip('/')}/tokenizer")
    if not fs.exists(path):
        return None
    with tempfile.TemporaryDirectory(prefix="sluice-tokenizer-") as local:
        for file in fs.ls(path, detail=False):
            fs.get_file(file, f"{local}/{str(file).rpartition('/')[2]}")
        tokenizer = AutoTokenizer.from_pretrained(local, local_files_only=True, trust_remote_code=False)
    for name in ("is_local", "local_files_only", "trust_remote_code"):  # how it was loaded, which it would save, too
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer

"""What a training does, in one short YAML: model, objectives, data, phases, optimizer.

recipe = Recipe.load("clip-vit-b32", tiny=True, overrides=["samples=2000"])
model = recipe.model.build()

A recipe says nothing of where it runs: the number of processes, the device and the folders of the data come with the
command. Batch, samples and warmup are counted in samples of all processes together.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files as package_files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Share = Annotated[float, Field(gt=0, le=1)]


class RecipeError(ValueError):
    """A recipe that cannot be: one line that names the value, what was expected and the remedy."""


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Component(Part):
    """A class by its import path and its parameters: `models.objectives.contrastive.InfoNCE: {}` in YAML."""

    path: str
    parameters: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"path": value}
        if isinstance(value, dict) and "path" not in value:
            path, parameters = _only(value)
            return {"path": path, "parameters": parameters or {}}
        return value

    @model_validator(mode="after")
    def _exists(self) -> Self:
        known = _parameters(self.path)
        for name in self.parameters:
            if known is not None and name not in known:
                raise ValueError(f"{self.path} has no parameter {name!r}{_nearest(name, known)}")
        return self

    def load(self) -> Any:
        """The class. Raises `RecipeError` for what is neither a model nor an objective: recipes may be strangers'."""
        from models.trainable import Objective, Trainable  # torch: seconds, paid by who builds something

        module, _, name = self.path.rpartition(".")
        found = getattr(importlib.import_module(module), name)
        if not (isinstance(found, type) and issubclass(found, (Trainable, Objective))):
            raise RecipeError(
                f"{self.path} is neither a model nor an objective; expected a class of `models.trainable`'s"
            )
        return found

    def build(self, **given: Any) -> Any:
        """An instance of it, with its parameters and what only the caller knows."""
        return self.load()(**{**self.parameters, **given})


class Term(Part):
    """An objective and its weight in the loss: `models.objectives.contrastive.InfoNCE: {weight: 0.5}` in YAML."""

    objective: Component
    weight: float = Field(default=1, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"objective": value}
        if isinstance(value, dict) and "objective" not in value:
            path, parameters = _only(value)
            parameters = dict(parameters or {})
            return {"weight": parameters.pop("weight", 1), "objective": {path: parameters}}
        return value


class Images(Part):
    """How an image becomes the model's input."""

    side: int = Field(default=224, ge=8)
    """px, height and width."""
    crop: tuple[Share, Share] = (0.9, 1.0)
    """Smallest and largest share of the area that a random crop takes while training."""
    flip: float = Field(default=0, ge=0, le=1)
    """Chance of a mirrored image; 0 where captions say left and right."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    deviation: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    fit: Literal["random", "centre", "pad", "stretch", "anyres"] = "random"
    """What of an image becomes the square: a random crop; the centre; all of it, padded with `mean` (LLaVA-1.5); all of
    it, whatever becomes of its shape (SigLIP, PaliGemma); or all of it once, and once cut into tiles of that side
    (AnyRes, LLaVA-NeXT). Where turns are learnt, chance has no say."""
    grids: tuple[tuple[int, int], ...] = ()
    """Heights and widths in px that AnyRes may cut into tiles; multiples of `side`."""
    tokens: int | None = Field(default=None, ge=1)
    """That the model makes of a square, where images stand among the tokens of a text: the patches of its tower, or
    what its connector leaves of them."""


class Texts(Part):
    """How a caption becomes the model's input."""

    tokenizer: str | None = None
    """A folder or a hub id; by default one is trained on the captions of the data."""
    vocabulary: int = Field(default=49_408, ge=300)
    """Tokens of a trained one, at most."""
    context: int = Field(default=77, ge=4)
    """Tokens of a text, with its first and last; what is longer is cut."""
    turns: str | None = None
    """`apart`: each question about images is answered as if it were the first, from one look at them, so many at a time
    as `context` holds; by default after all turns before it. For questions that do not refer to earlier ones, and for a
    model that is asked one at a time. It holds for all sets; `models.data.rounds` says what stays as it is."""

    @field_validator("turns")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value not in ("apart", None):
            raise ValueError("expected apart; leave it out for turns that follow one another")
        return value


class Labels(Part):
    """How a sample says which class its image is of."""

    field: str | None = None
    """A key of the JSON; by default the class is the number in the sample's `.cls`."""
    names: tuple[str, ...] = ()
    """Of the classes in their order: what the JSON has under `field`, where that is no number."""


class Crops(Part):
    """Views of an image beside those that `images` describes: two large ones (DINO), or that of a pair (SLIP)."""

    count: int = Field(default=8, ge=0)
    side: int = Field(default=96, ge=8)
    """px, height and width."""
    crop: tuple[Share, Share] = (0.05, 0.4)
    """Smallest and largest share of the area."""
    flip: float | None = Field(default=None, ge=0, le=1)
    """Chance of a mirrored view; by default that of `images`."""


class Teacher(Part):
    """What a sample's JSON has of a model that saw it before (MobileCLIP)."""

    image: str = "image_embedding"
    """The key of the image's row."""
    text: str = "text_embedding"
    """The key of a caption's row, beside its text."""
    width: int = Field(default=768, ge=1)
    """Numbers of a row."""


class Data(Part):
    """Which samples, and what becomes of them."""

    kind: Literal[
        "pairs", "pairs_and_views", "pairs_and_teacher", "conversations", "texts", "sentence_pairs", "labels", "crops"
    ] = "pairs"
    """`models.data.kinds` has what each is read as."""
    captions: int = Field(default=1, ge=1)
    """How many of its captions a sample is seen with at once; drawn anew each time where it has more."""
    images: Images = Images()
    texts: Texts = Texts()
    labels: Labels = Labels()
    crops: Crops = Crops()
    teacher: Teacher = Teacher()
    mixture: dict[str, float] = {"shards": 1}
    """Sets of shards by name, and the share of the samples that each gives; the command says where they lie."""

    @property
    def flip_of_crops(self) -> float:
        """Chance of a mirrored view."""
        return self.images.flip if self.crops.flip is None else self.crops.flip

    @model_validator(mode="after")
    def _fits(self) -> Self:
        images = self.images
        if self.kind == "conversations" and (images.fit == "random" or images.tokens is None):
            raise ValueError("conversations want images.fit = centre, pad, stretch or anyres, and images.tokens")
        if self.kind.startswith("pairs") and images.fit != "random":
            raise ValueError(f"images.fit = {images.fit!r} is for conversations; leave it out")
        if self.kind == "pairs_and_teacher" and self.captions > 1:
            raise ValueError(f"captions = {self.captions}: pairs_and_teacher show one at once; leave it out")
        if self.texts.turns is not None and self.kind != "conversations":
            raise ValueError(f"texts.turns = {self.texts.turns} is for conversations; leave it out")
        if (images.fit == "anyres") != bool(images.grids):
            raise ValueError("images.grids are for images.fit = anyres, which needs some")
        if images.grids and math.isqrt(images.tokens or 0) ** 2 != images.tokens:
            raise ValueError(f"images.tokens = {images.tokens}: expected a square number, for tiles are laid out")
        if odd := [grid for grid in images.grids if grid[0] % images.side or grid[1] % images.side]:
            raise ValueError(f"images.grids: {odd[0]} is no multiple of images.side = {images.side}")
        return self


class Phase(Part):
    """A stretch of the training."""

    name: str = "train"
    share: Share = 1
    """Of the recipe's samples."""
    rates: dict[str, float] = {".*": 1}
    """Regular expression searched in a parameter's name -> factor of the learning rate; the first match counts.
    0 freezes, and so does no match."""
    patch_dropout: float = Field(default=0, ge=0, lt=1)
    """Share of the patches that the image tower does not see (FLIP, Li et al. 2023)."""
    mixture: dict[str, float] | None = None
    """Sets of this phase alone, gone through from their beginning; by default `data.mixture`."""


class Optimizer(Part):
    """AdamW (Loshchilov & Hutter 2019). Gains, biases and scalars do not decay."""

    learning_rate: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-6
    weight_decay: float = Field(default=0.2, ge=0)
    weight_decay_end: float | None = Field(default=None, ge=0)
    """What a cosine over the whole training makes of it; by default it stays."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; by default it is left as it is."""


class Schedule(Part):
    """The learning rate over each phase: linear warmup, then `cosine` to `floor`, `wsd` (constant, then linear to
    `floor` over the last `decay`), or `constant`."""

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: int = Field(default=0, ge=0)
    """Samples, fewer than those of a phase: who lowers `samples` says the warmup, too."""
    decay: Share = 0.1
    floor: float = Field(default=0, ge=0, le=1)
    """Share of the learning rate."""


class Guard(Part):
    """What is done about a loss that is no number, or jumps."""

    spike: float = Field(default=8, gt=1)
    """Standard deviations above the running mean that count as a jump."""
    then: Literal["stop", "skip"] = "stop"
    """`skip`: go back to the newest checkpoint and leave out the batch that did it."""


class Parallel(Part):
    """How the work is laid over processes; none of it changes what is computed, but for towers with batch statistics
    (ALIGN, CLIP's ResNets, some of timm's): those are of the rows that a process works on at once, and the running ones
    that are kept are the first process's."""

    mode: Literal["ddp", "fsdp"] = "ddp"
    micro_batch: int | None = Field(default=None, ge=1)
    """Samples that a process works on at once; more than that are accumulated."""
    checkpoint_activations: bool = False
    compile: bool = False
    decoders: int = Field(default=0, ge=0)
    """Processes that read and decode for each that trains; on Linux only. 0: threads of its own, which wait for each
    other more the more there are."""


class Recipe(Part):
    """One system: what it is, what it learns from, and how."""

    name: str
    about: str
    """One line: what it is and where it was published."""
    model: Component
    objectives: tuple[Term, ...] = Field(min_length=1)
    data: Data = Data()
    samples: int = Field(ge=1)
    """Seen in all, over all phases."""
    batch: int = Field(ge=1)
    """Samples of a step, over all processes."""
    phases: tuple[Phase, ...] = (Phase(),)
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the forward pass; weights and optimizer are float32."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay a step of an exponential moving average of the weights, which is then what is exported."""
    guard: Guard = Guard()
    parallel: Parallel = Parallel()
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Samples; by default a tenth of all."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints that stay, beside the best: of those of the newest one's phase that were due the one with the
    lowest loss, a mean since the one before that was. Losses of two phases are not compared, for their data and patches
    differ."""
    export: Literal["last", "best"] = "last"
    """Which weights become the model: those after the last step, or those of the best checkpoint. The commands write
    the model of a training that has ended again, without a step, where they are called with the other; a node of a DAG
    (`settings: [export=best]`) has then another key, and trains anew."""
    seed: int = 0

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        total = sum(phase.share for phase in self.phases)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"phases: their shares add up to {total:g}; expected 1")
        for phase in self.phases:
            for pattern in phase.rates:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(
                        f"phases.{phase.name}.rates: {pattern!r} is no regular expression: {error}"
                    ) from None
        if self.samples < self.batch:
            raise ValueError(f"samples = {self.samples}: less than one batch of {self.batch}; lower `batch`")
        self._warms_up()
        return self

    def _warms_up(self) -> None:
        """Raise `ValueError` where a phase would end before its learning rate is reached."""
        warmup = self.schedule.warmup
        for number, phase in enumerate(self.phases):
            first, last = self.bounds(number)
            if 0 < warmup >= last - first:
                whole = f"all {self.samples:,} samples"
                part = f"the {last - first:,} samples of phase {phase.name!r}"
                raise ValueError(
                    f"schedule.warmup = {warmup}: as long as {whole if len(self.phases) == 1 else part}, or longer; "
                    f"set schedule.warmup=…, such as {(last - first) // 10}"
                )

    @classmethod
    def load(cls, source: str | Path, tiny: bool = False, overrides: Sequence[str] = ()) -> Recipe:
        """A file, or a recipe that sluice ships; over it its overlay, if `tiny`, then the overrides `key.key=value`.

        Raises `RecipeError`.
        """
        path = Path(source)
        if path.is_file():
            text, name = path.read_text(encoding="utf-8"), path.stem
        elif str(source) in shipped():
            text, name = (package_files("models.recipes") / f"{source}.yaml").read_text(encoding="utf-8"), str(source)
        else:
            raise RecipeError(
                f"no recipe file {str(source)!r}, and sluice ships none of that name"
                f"{_nearest(str(source), shipped())}; `sluice recipes` lists them"
            )
        return cls.parse(text, name, tiny, overrides)

    @classmethod
    def parse(cls, text: str, name: str, tiny: bool = False, overrides: Sequence[str] = ()) -> Recipe:
        """From YAML text. Raises `RecipeError`."""
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"recipe {name}: no YAML: {' '.join(str(error).split())}") from None
        if not isinstance(document, dict):
            raise RecipeError(
                f"recipe {name}: expected keys such as `model` and `objectives`, found {type(document).__name__}"
            )
        overlay = document.pop("tiny", None)
        if tiny:
            if overlay is None:
                raise RecipeError(f"recipe {name} has no `tiny` overlay; add one, or leave --tiny out")
            document = laid_over(document, overlay)
        for override in overrides:
            try:
                document = laid_over(document, _override(override))
            except yaml.YAMLError:
                raise RecipeError(f"{override!r}: its value is no YAML; quote it, or close its brackets") from None
        try:
            return cls.model_validate({"name": name, **document})
        except ValidationError as error:
            raise RecipeError(f"recipe {name}: {_first(error)}") from None

    @property
    def sets(self) -> dict[str, float]:
        """Every set that some phase reads, with the share of the first one that does."""
        mixtures = [self.data.mixture if phase.mixture is None else phase.mixture for phase in self.phases]
        return {name: share for mixture in reversed(mixtures) for name, share in mixture.items()}

    def phase_at(self, samples: int) -> tuple[int, Phase]:
        """The number of the phase, and the phase, in which the sample after `samples` is seen."""
        for number, phase in enumerate(self.phases):
            if samples < self.bounds(number)[1]:
                return number, phase
        return len(self.phases) - 1, self.phases[-1]

    def bounds(self, number: int) -> tuple[int, int]:
        """The samples at which a phase begins and ends."""
        ends = [sum(phase.share for phase in self.phases[:count]) * self.samples for count in (number, number + 1)]
        return round(ends[0]), round(ends[1])


def shipped() -> list[str]:
    """The names of the recipes that sluice ships."""
    return sorted(
        item.name.removesuffix(".yaml")
        for item in package_files("models.recipes").iterdir()
        if item.name.endswith(".yaml")
    )


def _only(found: Mapping[str, Any]) -> tuple[str, Any]:
    """The one class of a mapping, and its parameters. Raises `ValueError`, such as for parameters beside the class."""
    if len(found) == 1:
        ((path, parameters),) = found.items()
        if not isinstance(parameters, Mapping | None):
            raise ValueError(f"{path}: found {parameters!r}; expected its parameters: {{name: value}}")
        return path, parameters
    first = next((key for key in found if "." in str(key)), "package.module.Class")
    raise ValueError(
        f"found {', '.join(map(str, found)) or 'nothing'}; expected one class with its parameters within: "
        f"{{{first}: {{name: value}}}}"
    )


def _parameters(path: str) -> set[str] | None:
    """What a class takes; None where only running it would tell.

    Its source is read and not run: that would take the seconds that torch needs to load, at every look at a recipe.
    Raises `ValueError` with the nearest name where there is no such class.
    """
    module, _, name = path.rpartition(".")
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise ValueError(f"{path!r} cannot be imported: no module {module!r}; expected package.module.Class")
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        raise ValueError(f"{module} has no class {name!r}{_nearest(name, classes)}")
    for method in classes[name].body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            taken = method.args
            names = {argument.arg for argument in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)} - {"self"}
            return None if taken.kwarg else names
    return None


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key, all else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = laid_over(merged[key], value)
        else:
            merged[key] = value
    return merged


def _override(text: str) -> dict[str, Any]:
    place, equals, value = text.partition("=")
    if not equals or not place:
        raise RecipeError(f"{text!r} is no setting; expected key.key=value, such as optimizer.learning_rate=1e-3")
    found: Any = yaml.safe_load(value)
    for key in reversed(place.split(".")):
        found = {key: found}
    return dict(found)


def _nearest(name: str, known: Any) -> str:
    near = get_close_matches(name, [other for other in known if not other.startswith("_")], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, in a line."""
    found = error.errors()[0]
    place = ".".join(str(step) for step in found["loc"])
    if found["type"] == "extra_forbidden":
        fields: Any = Recipe.model_fields
        for step in found["loc"][:-1]:
            inner = fields[step].annotation if step in fields else None
            fields = getattr(inner, "model_fields", {})
        return f"unknown key {place!r}{_nearest(str(found['loc'][-1]), fields)}"
    message = found["msg"].removeprefix("Value error, ")
    given = found["input"]
    shown = f" = {given!r}" if isinstance(given, (str, int, float)) else ""
    return f"{place}{shown}: {message}" if place else message

"""The recipe: its schema, loading, overrides, and errors that name the key.

A recipe is a YAML page that names stages and says which stage each starts from:

    name: quickstart
    data: {dataset: shapes}
    stages:
      teacher: {kind: train, model: {name: resnet9, width: 16}}
      student: {kind: distill, teacher: teacher, model: {name: resnet8}}

Every key is checked before anything runs. Importing this needs no TensorFlow.
"""

import difflib
import graphlib
import pathlib
from typing import Annotated, Any, Literal, get_args

import pydantic
import yaml

Share = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]
Weight = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]
Positive = Annotated[float, pydantic.Field(gt=0.0)]
Count = Annotated[int, pydantic.Field(ge=1, strict=True)]
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**31, strict=True)]
Name = Annotated[str, pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")]


class _Settings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(_Settings):
    """Which images, and how they are split."""

    dataset: Literal["cifar10", "folder", "shapes"]
    validation: Share = 0.1
    calibration: Count = 500
    seed: Seed = 0
    path: str | None = None
    image_size: tuple[Count, Count] | Count | None = None
    channels: Literal[1, 3] | None = None
    test: Share | None = None
    train_images: Count | None = None
    test_images: Count | None = None


class Augment(_Settings):
    """Random changes of the training images; see `data.batches`."""

    crop: Annotated[int, pydantic.Field(ge=0)] = 4
    flip: bool | Literal["alternating"] = True
    cutout: Annotated[int, pydantic.Field(ge=0)] = 0


class Training(_Settings):
    """How a stage fits its model; see `training.fit` and `build_optimizer`."""

    epochs: Count = 10
    batch_size: Count = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Positive = 0.1
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup: Share = 0.2
    momentum: Share = 0.9
    weight_decay: Annotated[float, pydantic.Field(ge=0.0)] = 0.0
    label_smoothing: Share = 0.0
    ema: Annotated[float, pydantic.Field(gt=0.0, lt=1.0)] | None = None
    select: Literal["last", "best"] = "last"
    patience: Count | None = None
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"
    augment: Augment | None = None
    refit: bool = False


class Model(pydantic.BaseModel):
    """A factory's name and its arguments, or the path of a saved model."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    name: str | None = None
    file: str | None = None

    @pydantic.model_validator(mode="after")
    def _one_source(self):
        if (self.name is None) == (self.file is None):
            raise ValueError("expected either `name` (a factory) or `file` (a model)")
        if self.file and self.model_extra:
            raise ValueError(f"expected no more than `file`, got {self.model_extra}")
        return self


class _Stage(_Settings):
    seed: Seed | None = None

    def parents(self):
        """Names of the stages this one starts from or learns from."""
        return []

    def files(self):
        """Paths of the model files that it starts from."""
        given = (getattr(self, "file", None), getattr(self, "model", None))
        paths = [getattr(item, "file", item) for item in given]
        return [path for path in paths if path]


class _Taught(_Stage):
    """A stage that may learn from a teacher, live or by stored soft labels."""

    teacher: Name | None = None
    soft_labels: Name | None = None
    temperature: Positive = 4.0
    soft_weight: Weight = 0.9
    training: Training = Training()

    @pydantic.model_validator(mode="after")
    def _one_teacher(self):
        if self.teacher and self.soft_labels:
            raise ValueError("expected one of `teacher` and `soft_labels`, got both")
        if self.soft_labels and self.training.refit:
            raise ValueError(
                "`training.refit` needs a live `teacher`: soft labels are stored for "
                "the training images only"
            )
        if self.soft_labels and self.training.augment:
            raise ValueError(
                "`training.augment` is set by the `soft_labels` stage: remove it here"
            )
        return self

    def parents(self):
        return [name for name in (self.teacher, self.soft_labels) if name]


class Train(_Stage):
    """Trains a model on labels alone: a teacher, or the baseline."""

    kind: Literal["train"]
    model: Model
    training: Training = Training()


class Load(_Stage):
    """Takes a model that is trained already, e.g. a given teacher."""

    kind: Literal["load"]
    file: str


class SoftLabels(_Stage):
    """Stores a teacher's logits for augmentation views of the training images."""

    kind: Literal["soft_labels"]
    teacher: Name
    views: Count = 1
    augment: Augment | None = None
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"

    @pydantic.model_validator(mode="after")
    def _views_differ(self):
        if self.views > 1 and self.augment is None:
            raise ValueError("several `views` need `augment`, or they are all alike")
        return self

    def parents(self):
        return [self.teacher]


class Distill(_Taught):
    """Trains a student on labels and a teacher."""

    kind: Literal["distill"]
    model: Model

    @pydantic.model_validator(mode="after")
    def _has_teacher(self):
        if not self.parents():
            raise ValueError("expected `teacher` or `soft_labels`, got neither")
        return self


class Prune(_Taught):
    """Zeroes the smallest weights while training goes on."""

    training: Training

    kind: Literal["prune"]
    from_: Name = pydantic.Field(alias="from")
    sparsity: Share | None = None
    beta: Annotated[float, pydantic.Field(gt=0.0, lt=1.0)] | None = None
    schedule: Literal["polynomial", "constant"] = "polynomial"
    begin: Share = 0.0
    end: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 0.5
    frequency: Count = 50
    exclude: tuple[str, ...] = ()

    @pydantic.model_validator(mode="after")
    def _one_target(self):
        if (self.sparsity is None) == (self.beta is None):
            raise ValueError("expected one of `sparsity` and `beta`")
        chosen = self.training
        if chosen.select == "best" or chosen.patience or chosen.refit:
            # An epoch chosen for its accuracy is one before the zeros are there.
            raise ValueError(
                "`training` of a prune stage expects select: last, no patience and no "
                "refit"
            )
        if self.end <= self.begin:
            raise ValueError(f"expected begin < end, got {self.begin} and {self.end}")
        return self

    def parents(self):
        return [self.from_, *super().parents()]


class Quantize(_Taught):
    """Prepares a model for int8: after training, or by training with it."""

    kind: Literal["quantize"]
    from_: Name = pydantic.Field(alias="from")
    method: Literal["ptq", "qat"] = "ptq"
    preserve_sparsity: bool | Literal["auto"] = "auto"

    @pydantic.model_validator(mode="after")
    def _trains_or_not(self):
        given = {"training", "teacher", "soft_labels"} & self.model_fields_set
        if self.method == "ptq" and given:
            raise ValueError(
                f"method ptq trains nothing, got `{sorted(given)[0]}`; remove it, or "
                "set method: qat"
            )
        if self.method == "qat" and "training" not in given:
            raise ValueError(
                "method qat expects `training`, with a learning rate about a hundredth "
                "of the one the model was trained with"
            )
        return self

    def parents(self):
        return [self.from_, *super().parents()]


class Export(_Stage):
    """Writes and checks `.tflite` files."""

    kind: Literal["export"]
    from_: tuple[Name, ...] = pydantic.Field(alias="from", min_length=1)
    max_disagreement: Share = 0.05
    max_drop: Share = 0.01

    def parents(self):
        return list(self.from_)


class Evaluate(_Stage):
    """Scores models and files on the test images; the only stage that does."""

    kind: Literal["evaluate"]
    from_: tuple[Name, ...] = pydantic.Field(alias="from", min_length=1)
    latency: bool = True
    threads: Count = 1
    resolver: Literal["xnnpack", "builtin", "reference"] = "xnnpack"

    def parents(self):
        return list(self.from_)


class Report(_Stage):
    """Draws tables and plots from the measurements."""

    kind: Literal["report"]
    from_: Name = pydantic.Field(alias="from")

    def parents(self):
        return [self.from_]


Stage = Annotated[
    Train | Load | SoftLabels | Distill | Prune | Quantize | Export | Evaluate | Report,
    pydantic.Field(discriminator="kind"),
]
KINDS = {
    get_args(cls.model_fields["kind"].annotation)[0]: cls
    for cls in get_args(get_args(Stage)[0])
}

_FLOAT = ("train", "load", "distill", "prune")
_MODELS = (*_FLOAT, "quantize")
_CELLS = (*_MODELS, "soft_labels", "export")
# The kinds a stage may name under a key.
_ACCEPTS = {
    "teacher": _FLOAT,
    "soft_labels": ("soft_labels",),
    ("prune", "from"): _FLOAT,
    ("quantize", "from"): _FLOAT,
    ("export", "from"): _MODELS,
    ("evaluate", "from"): (*_FLOAT, "export"),
    ("report", "from"): ("evaluate",),
}


class Recipe(_Settings):
    """All that determines a run; see `configs/` for examples.

    `baseline` is the stage that others are held against; `flagship` the quantize
    stage whose int8 and uint8 files are copied to the run's top, and `keep` the
    models that are saved there in half precision, all named beforehand.
    """

    name: Name
    seed: Seed = 1
    data: Data
    baseline: Name | None = None
    flagship: Name | None = None
    keep: tuple[Name, ...] = ()
    matrix: dict[str, Annotated[list[Any], pydantic.Field(min_length=1)]] = {}
    stages: dict[Name, Stage] = pydantic.Field(min_length=1)


def load_recipe(path, overrides=()):
    """Reads and checks a recipe.

    Args:
        path: A YAML file.
        overrides: Strings `key.path=value`, values in YAML, e.g.
            "stages.student.training.epochs=5".

    Returns:
        A `Recipe`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key, type, value or reference is wrong: one line with the
            key's full path, what was expected, and the nearest valid name.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a recipe (YAML) at {path}: none there")
    try:
        content = yaml.load(path.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise ValueError(f"{path} is not valid YAML: {where}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys such as name, data and stages")
    content = _unshared(content)
    for override in overrides:
        _override(content, override)
    return parse_recipe(content)


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would drop one in silence."""

    def construct_mapping(self, node, deep=False):
        keys = [
            key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"
        ]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(
                f"the key {twice[0]!r} is given twice{node.start_mark}"
            )
        return super().construct_mapping(node, deep)


def _unshared(content):
    """A copy in which a YAML alias is a value of its own: changed, it stays alone."""
    if isinstance(content, dict):
        return {key: _unshared(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_unshared(value) for value in content]
    return content


def parse_recipe(content):
    """Checks a recipe given as a dict; see `load_recipe`."""
    try:
        recipe = Recipe.model_validate(content)
    except pydantic.ValidationError as error:
        raise ValueError(_explain(error, content)) from None
    _check_references(recipe)
    return recipe


def set_key(content, path, value):
    """Sets `content["a"]["b"]` for the path "a.b", making dicts on the way."""
    *parents, last = path.split(".")
    for index, key in enumerate(parents):
        if content.get(key) is None:
            content[key] = {}
        content = content[key]
        if not isinstance(content, dict):
            where = ".".join(parents[: index + 1])
            raise ValueError(f"{path}: {where} is a value and has no keys inside")
    content[last] = value


def _override(content, text):
    path, separator, value = text.partition("=")
    if not separator or not path.strip("."):
        raise ValueError(f"--set expects key.path=value. Received: {text!r}")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {path}: {value!r} is not a YAML value") from error
    set_key(content, path, parsed)


def stage_order(*recipes):
    """Stage names, each after the stages it needs in any of the recipes.

    Raises:
        ValueError: If stages need each other in a circle.
    """
    graph = {name: [] for name in recipes[0].stages}
    for recipe in recipes:
        for name, stage in recipe.stages.items():
            graph[name] += stage.parents()
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise ValueError(
            f"stages: expected no circle, got {circle}; change one `from` of them"
        ) from None


def _check_references(recipe):
    for name, stage in recipe.stages.items():
        values = stage.model_dump(by_alias=True)
        for key in ("from", "teacher", "soft_labels"):
            named = values.get(key) or ()
            for other in [named] if isinstance(named, str) else named:
                accepted = _ACCEPTS.get((stage.kind, key)) or _ACCEPTS[key]
                _check_reference(recipe, f"stages.{name}.{key}", other, accepted)
    for key, accepted in (("baseline", _FLOAT), ("flagship", ("quantize",))):
        if getattr(recipe, key):
            _check_reference(recipe, key, getattr(recipe, key), accepted)
    for name in recipe.keep:
        _check_reference(recipe, "keep", name, _FLOAT)
    stage_order(recipe)
    _check_measured(recipe)
    for key in recipe.matrix:
        _check_axis(recipe, key)


def _check_measured(recipe):
    """What is named for the end of the run must be measured there, and once."""
    for kind in ("evaluate", "report"):
        names = [name for name, stage in recipe.stages.items() if stage.kind == kind]
        if len(names) > 1:
            raise ValueError(
                f"stages.{names[1]}: expected one stage of kind {kind}, got "
                f"{', '.join(names)}"
            )
    measured = {
        other
        for stage in recipe.stages.values()
        if stage.kind == "evaluate"
        for other in stage.parents()
    }
    exported = {
        source
        for name in measured
        if recipe.stages[name].kind == "export"
        for source in recipe.stages[name].parents()
    }
    named = [("baseline", recipe.baseline, measured)]
    named += [("flagship", recipe.flagship, exported)]
    named += [("keep", name, measured) for name in recipe.keep]
    for key, name, reached in named:
        if name and name not in reached:
            raise ValueError(
                f"{key}: expected a stage that the evaluate stage measures, got "
                f"{name!r}; add it to the `from` of evaluate, or of its export stage"
            )


def _check_axis(recipe, key):
    """A matrix axis must be a key that tells stages apart."""
    root, *rest = key.split(".")
    if root == "data":
        raise ValueError(
            f"matrix.{key}: expected no key of `data`, since all cells are measured on "
            "the same test images; run a recipe for each"
        )
    if root == "stages" and rest:
        _check_reference(recipe, f"matrix.{key}", rest[0], _CELLS)
    elif key != "seed":
        raise ValueError(
            f"matrix.{key}: expected `seed` or a key of a stage, such as "
            "stages.student.temperature"
        )


def _check_reference(recipe, key, name, accepted):
    candidates = [n for n, s in recipe.stages.items() if s.kind in accepted]
    if name not in candidates:
        there = name in recipe.stages
        got = f"{name!r}, of kind {recipe.stages[name].kind}" if there else repr(name)
        raise ValueError(
            f"{key}: expected a stage of kind {' or '.join(accepted)}, got {got}"
            f"{_nearest(name, candidates)}"
        )


def _explain(error, content):
    """One line for the first of pydantic's errors."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    if len(location) > 2 and location[0] == "stages" and location[2] in KINDS:
        del location[2]  # The kind, which pydantic adds to the path.
    # Of a union, pydantic names the member it tried last, which is no key.
    unions = ("bool", "constrained-int", "tuple", "float", "int", "str")
    location = [p for p in location if "[" not in p and p not in unions]
    path = ".".join(location) or "the recipe"
    kind, received = first["type"], first["input"]
    more = len(error.errors()) - 1
    tail = f" (and {more} more)" if more else ""
    if kind == "extra_forbidden":
        return f"{path}: unknown key{_nearest_key(location, content)}{tail}"
    if kind == "missing":
        return f"{path}: expected a value, got nothing{tail}"
    if kind.startswith("union_tag"):
        got = received.get("kind") if isinstance(received, dict) else received
        nearest = _nearest(str(got), KINDS)
        return f"{path}.kind: expected one of {', '.join(KINDS)}, got {got!r}{nearest}"
    message = first["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{path}: {message}{tail}"
    message = message.replace("Input should be ", "expected ")
    near = ""
    if kind == "literal_error" and isinstance(received, str):
        near = _nearest(received, [part for part in message.split("'")[1::2]])
    return f"{path}: {message}, got {received!r}{near}{tail}"


def _nearest_key(location, content):
    """The valid keys' nearest to the last part of a location."""
    model, fields = Recipe, None
    node = content
    for part in location[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
        if model is Recipe and part == "stages":
            model = None
        elif model is None:
            kind = node.get("kind") if isinstance(node, dict) else None
            model = KINDS.get(kind)
        else:
            model = _field_model(model, part)
    fields = [f.alias or n for n, f in model.model_fields.items()] if model else []
    near = _nearest(location[-1], fields)
    return near or (f"; expected one of {', '.join(fields)}" if fields else "")


def _field_model(model, key):
    annotation = model.model_fields[key].annotation
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, pydantic.BaseModel):
            return candidate
    return None


def _nearest(name, candidates):
    found = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""

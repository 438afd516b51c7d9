"""What a kind of stage is: its settings, and what the runner asks of it."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, get_args, overload

from kdprune import _registry
from kdprune.stages.settings import (
    Seed,
    Settings,
    names,
)

if TYPE_CHECKING:
    import tf_keras as keras

    from kdprune.data import Dataset

# The file in which a stage hands on a Keras model.
MODEL = "model.keras"

# What stages hand on: the values of `Stage.gives`.
FLOAT_MODEL = "float model"
QUANTIZED_MODEL = "quantized model"
SOFT_LABELS = "soft labels"
SENSITIVITY = "sensitivity"
FILES = "files"
MEASUREMENTS = "measurements"


class InvalidRecipe(ValueError):
    """What is wrong with a recipe: one line for each problem, twenty at most."""

    def __init__(self, problems: Iterable[str]):
        lines = list(itertools.islice(problems, 21))
        self.problems = [*lines[:20], "and more"] if len(lines) > 20 else lines
        super().__init__("\n".join(self.problems))


@dataclasses.dataclass(frozen=True)
class Result:
    """What a stage made.

    Attributes:
        figures: JSON-able figures for the record.
        outputs: Files that others build on, relative to the stage's folder.
        published: Those of the outputs that are shown at the top of the run's
            folder, by their names there: the runner copies them.
        identity: What stands for the content of the outputs to what is built on
            them, where that is the same though the outputs' bytes may not be.
    """

    figures: dict[str, Any]
    outputs: list[str]
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)
    identity: str | None = None


@dataclasses.dataclass(frozen=True)
class Node:
    """A stage with all its settings, in one cell of the matrix or in several.

    Attributes:
        name: Its folder's name: the stage's, with the axes it depends on.
        stage: The stage's name in the recipe.
        settings: The stage's settings, its seed resolved.
        parents: Nodes it needs, by the stage's name; several for a stage that
            gathers all cells.
    """

    name: str
    stage: str
    settings: Stage
    parents: dict[str, list[Node]]

    @property
    def kind(self) -> str:
        return self.settings.kind  # type: ignore[attr-defined]  # Of each subclass.

    @property
    def taught(self) -> bool:
        """Whether a teacher is asked, so that images without labels are used too."""
        return self.settings.taught

    def parents_of(self, key: str) -> list[Node]:
        """The nodes that a key of the settings (`from`, `teacher`, …) names."""
        return [self.parents[name][0] for name in self.settings.references(key)]

    def parent_of(self, key: str) -> Node:
        """The only node that a key of the settings names."""
        (parent,) = self.parents_of(key)
        return parent

    def all_parents(self) -> Iterator[Node]:
        return itertools.chain(*self.parents.values())

    def source(self) -> Node | None:
        """The node whose `origin` gives the layers of its model, if the recipe tells.

        Behind a stage that finds out which layers to keep, it does not.
        """
        if self.settings.origin():
            return self
        if self.settings.references("model.architecture_of"):
            return self.parent_of("model.architecture_of").source()
        return self.parent_of("from").source() if self.settings.keeps_layers else None


class Run(Protocol):
    """What a stage may ask of the run it is part of."""

    folder: pathlib.Path
    command: str
    nodes: list[Node]
    reads_test: bool
    workers: Any
    """Those that train together (`runner.cluster.Cluster`), or None."""

    @property
    def recipe(self) -> Any:
        """The `config.Recipe`."""

    @property
    def dataset(self) -> Dataset:
        """The recipe's images."""

    def record(self, node: Node) -> dict[str, Any] | None:
        """The record of a node that is done with its present inputs, else None."""

    def output(self, node: Node, name: str) -> pathlib.Path:
        """Where a file is that a node has handed on."""

    def first_time(self, what: str) -> bool:
        """Whether this is asked for the first time: for checks that cells share."""


class Stage(Settings):
    """A kind of stage: a class with its settings as fields, and what it does.

    To add a kind, write such a class, with a field `kind` whose type is the `Literal`
    of its name, and `execute`; then `register_stage` it. A recipe names the module
    under `plugins`. TensorFlow and what needs it are imported inside the methods, so
    that a recipe is checked at once.

    Attributes:
        accepts: What stages may be named under which keys: `{"from": (FLOAT_MODEL,)}`.
            A path such as "model.architecture_of" is a key inside a key.
        gives: What it hands on; None if nothing is built on it.
        role: The command that runs stages of this kind beside `kdprune run`.
        alone: Whether nothing may run beside it, as what is timed.
        gathers: Whether it looks at all cells of a matrix at once. There is one such
            stage of a kind in a recipe.
        reads_test: Whether it reads the test images. A dry run does not, and takes
            them to be those that were read before.
        keeps_layers: Whether its model has the layers, by name, of the one it starts
            from.
        plans: The keys whose stages must be done before `plan` can tell anything.
        seed: A seed of its own; otherwise the recipe's.

    Example:
        >>> from typing import Literal
        >>> class Copy(Stage):
        ...     kind: Literal["copy"]
        ...     from_: Name = pydantic.Field(alias="from")
        ...     accepts = {"from": (FLOAT_MODEL,)}
        ...     gives = FLOAT_MODEL
        ...
        ...     def execute(self, run, node, folder):
        ...         from kdprune.stages import fitting
        ...
        ...         model = fitting.load_node(run, node.parent_of("from"))
        ...         return fitting.save_outputs(model, folder, {})
    """

    accepts: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    gives: ClassVar[str | None] = None
    role: ClassVar[str | None] = None
    alone: ClassVar[bool] = False
    gathers: ClassVar[bool] = False
    reads_test: ClassVar[bool] = False
    keeps_layers: ClassVar[bool] = False
    plans: ClassVar[tuple[str, ...]] = ()

    seed: Seed | None = None
    """Seed of this stage; the recipe's if left out."""

    def execute(self, run: Run, node: Node, folder: pathlib.Path) -> Result:
        """Does what the stage is for; writes inside its folder only.

        The folder may hold what an interrupted run left of the same settings and
        inputs.
        """
        raise NotImplementedError

    def check_recipe(self, name: str, recipe: Any) -> None:
        """Raises `ValueError` for settings that other parts of the recipe rule out."""

    def check_files(self, run: Run, node: Node) -> None:
        """Raises `ValueError` for what is wrong before the images are read."""
        from kdprune.models import load_model

        for path in self.files():
            if not pathlib.Path(path).exists():
                raise FileNotFoundError(f"stages.{node.stage}: model not found: {path}")
            # Whether it fits the images is checked once they are there.
            if run.first_time(f"load {path}"):
                load_model(path)

    def check(self, run: Run, node: Node) -> None:
        """Raises `ValueError` for what would fail later, before anything is trained."""
        from kdprune.stages import loading

        for path in self.files():
            told = (getattr(self, key, None) for key in ("labels", "output"))
            loading.load_fitting(path, run.dataset, *told)

    def plan(self, run: Run, node: Node) -> str:
        """What it will do, for a dry run; asked only if `plans` names keys."""
        raise NotImplementedError

    def estimate(self, run: Run, node: Node) -> float:
        """About how many seconds it will take."""
        return 30.0

    def draws(self) -> bool:
        """Whether the result depends on the seed: otherwise all seeds share it."""
        return True

    def together(self) -> bool:
        """Whether all workers take part, where there are several: in training."""
        return False

    def writes_int8(self) -> bool:
        """Whether what it hands on is exported in int8: it may be the flagship then."""
        return False

    def fingerprinted(self, run: Run, node: Node) -> dict[str, Any]:
        """What determines the result beside settings, data and inputs."""
        if not self.files():
            return {}
        from kdprune.intake.labels import find_order

        classes, labels = run.dataset.classes, getattr(self, "labels", None)
        orders = [find_order(path, classes, labels) for path in self.files()]
        return {"orders": orders} if any(orders) else {}

    def load_model(self, run: Run, node: Node) -> keras.Model:
        """The Keras model that it handed on."""
        from kdprune.models import load_model

        return load_model(run.folder / node.name / MODEL)

    def conversions(self, run: Run, node: Node) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields dtype and arguments of `convert_tflite` for each file of its model."""
        yield "float32", {}

    def references(self, key: str) -> list[str]:
        """The stages that a key of `accepts` names."""
        value: Any = self
        for part in key.split("."):
            value = getattr(value, "from_" if part == "from" else part, None)
        return names(value)

    def parents(self) -> list[str]:
        """The stages that it needs, in the order of `accepts`."""
        return [name for key in self.accepts for name in self.references(key)]

    def files(self) -> list[str]:
        """Paths of the model files that it starts from."""
        given = (getattr(self, "file", None), getattr(self, "model", None))
        paths = [getattr(item, "file", item) for item in given]
        return [path for path in paths if path]

    def origin(self) -> object | None:
        """What gives the layers of its model (a file, a factory), if no stage does."""
        return None

    def untrained_model(self, run: Run, node: Node) -> keras.Model:
        """A model with the layers that `origin` gives, before anything is trained."""
        from kdprune.stages import loading

        given = (
            getattr(self, key, None) for key in ("input_range", "labels", "output")
        )
        return loading.load_layers(str(self.origin()), run.dataset, *given)

    @property
    def own_seed(self) -> int:
        """The seed, which is the recipe's where the stage has none of its own."""
        assert self.seed is not None  # The runner has resolved it.
        return self.seed

    @property
    def taught(self) -> bool:
        """Whether it learns from, or asks, a teacher."""
        return bool(self.references("teacher") or self.references("soft_labels"))


# The kinds of stages by name, in the order of registration.
KINDS: dict[str, type[Stage]] = {}

S = TypeVar("S", bound="type[Stage]")


@overload
def register_stage(cls: S, *, replace: bool = False) -> S: ...
@overload
def register_stage(cls: None = None, *, replace: bool = False) -> Callable[[S], S]: ...
def register_stage(cls: S | None = None, *, replace: bool = False) -> Any:
    """Adds a kind of stage, so that recipes may name it under `kind`.

    Args:
        cls: A subclass of `stages.Stage`. Left out, a decorator is returned.
        replace: Whether it may take the place of a kind of the same name.

    Returns:
        The class, so that this can be used as a decorator.

    Raises:
        ValueError: If the class is not a kind of stage, or its name is taken.

    Example:
        >>> @register_stage  # doctest: +SKIP
        ... class Copy(Stage):
        ...     kind: Literal["copy"]
    """
    if cls is None:
        return lambda cls: register_stage(cls, replace=replace)
    if not (isinstance(cls, type) and issubclass(cls, Stage)):
        raise ValueError(
            f"expected a subclass of kdprune.stages.Stage. Received: {cls!r}"
        )
    fields: dict[str, Any] = cls.__pydantic_fields__
    kinds = get_args(fields["kind"].annotation) if "kind" in fields else ()
    if len(kinds) != 1:
        raise ValueError(
            f"{cls.__name__} expects its kind as a field, such as "
            '`kind: Literal["my_kind"]`'
        )
    for key in cls.accepts:
        root = key.split(".")[0]
        if ("from_" if root == "from" else root) not in fields:
            raise ValueError(
                f"{cls.__name__}.accepts: {key!r} is not one of its settings"
            )
    if cls.execute is Stage.execute:
        raise ValueError(f"{cls.__name__} expects a method `execute`")
    kind: type[Stage] = cls
    _registry.add(KINDS, "kind of stage", kinds[0], kind, replace)
    return cls

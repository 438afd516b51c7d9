"""What a recipe's stages say of each other: names, kinds, order."""

import graphlib

from kdprune.config.messages import nearest
from kdprune.config.settings import names

_PRUNED = ("prune", "prune_channels", "prune_blocks", "cluster")
_FLOAT = ("train", "load", "distill", *_PRUNED)
_MODELS = (*_FLOAT, "quantize")
_CELLS = (*_MODELS, "soft_labels", "sensitivity", "export")
_EIGHT_BIT = ("ptq", "qat", "auto")
# The kinds a stage may name under a key.
_ACCEPTS = {
    "teacher": _FLOAT,
    "soft_labels": ("soft_labels",),
    ("train", "from"): _FLOAT,
    ("distill", "from"): _FLOAT,
    ("prune", "from"): _FLOAT,
    ("prune_channels", "from"): _FLOAT,
    ("prune_blocks", "from"): _FLOAT,
    ("sensitivity", "from"): _FLOAT,
    ("cluster", "from"): _FLOAT,
    ("quantize", "from"): _FLOAT,
    ("export", "from"): _MODELS,
    ("evaluate", "from"): (*_FLOAT, "export"),
    ("kit", "from"): ("evaluate",),
    ("report", "from"): ("evaluate", "sensitivity"),
    "sensitivity": ("sensitivity",),
}


def check_references(recipe):
    for name, stage in recipe.stages.items():
        values = stage.model_dump(by_alias=True)
        for key in ("from", "teacher", "soft_labels", "sensitivity"):
            for other in names(values.get(key)):
                accepted = _ACCEPTS.get((stage.kind, key)) or _ACCEPTS[key]
                _check_reference(recipe, f"stages.{name}.{key}", other, accepted)
        if values.get("sensitivity"):
            measured = recipe.stages[stage.sensitivity].from_
            if measured != stage.from_:
                raise ValueError(
                    f"stages.{name}.sensitivity: expected that of {stage.from_!r}, "
                    f"which is cut, got that of {measured!r}"
                )
        like = (values.get("model") or {}).get("like")
        if like:
            _check_reference(recipe, f"stages.{name}.model.like", like, _FLOAT)
    for key, accepted in (("baseline", _FLOAT), ("flagship", ("quantize",))):
        if getattr(recipe, key):
            _check_reference(recipe, key, getattr(recipe, key), accepted)
    flagship = recipe.stages.get(recipe.flagship)
    if flagship and flagship.method not in _EIGHT_BIT:
        raise ValueError(
            f"flagship: expected a stage of int8 (method {', '.join(_EIGHT_BIT)}), got "
            f"{recipe.flagship!r} of method {flagship.method}"
        )
    for name in recipe.keep:
        _check_reference(recipe, "keep", name, _FLOAT)
    stage_order(recipe)
    _check_measured(recipe)
    for key in recipe.matrix:
        _check_axis(recipe, key)
    for name in recipe.seeds:
        _check_reference(recipe, f"seeds.{name}", name, _CELLS)
        if "seed" not in recipe.matrix:
            raise ValueError(f"seeds.{name}: expected a matrix of seeds, got none")


def _check_measured(recipe):
    """What is named for the end of the run must be measured there, and once."""
    for kind in ("evaluate", "kit", "report"):
        found = [name for name, stage in recipe.stages.items() if stage.kind == kind]
        if len(found) > 1:
            raise ValueError(
                f"stages.{found[1]}: expected one stage of kind {kind}, got "
                f"{', '.join(found)}"
            )
        if kind == "report" and found:
            sources = recipe.stages[found[0]].parents()
            if all(recipe.stages[source].kind != "evaluate" for source in sources):
                raise ValueError(
                    f"stages.{found[0]}.from: expected the evaluate stage among them, "
                    f"got {', '.join(sources)}"
                )
        if kind == "kit" and found and not recipe.flagship:
            raise ValueError(
                f"stages.{found[0]}: a kit is the flagship's; expected `flagship` in "
                "the recipe, got none"
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
            f"{nearest(name, candidates)}"
        )


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

"""The names that `import kdprune` offers."""

import ast
import importlib
import inspect
import pathlib

import pytest

import kdprune

STUB = pathlib.Path(kdprune.__file__).with_suffix(".pyi")


@pytest.mark.parametrize("name", sorted(kdprune._PUBLIC))
def test_every_public_name_is_there_and_documented(name):
    found = getattr(kdprune, name)
    assert callable(found)
    assert len(inspect.getdoc(found).splitlines()) > 3


def test_editors_and_type_checkers_see_the_same_names():
    declared = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                # Only `x as x` is handed on by a stub.
                assert alias.asname == alias.name
                declared[alias.name] = node.module
    assert declared == kdprune._PUBLIC
    assert (STUB.parent / "py.typed").exists()


def test_the_package_ships_what_type_checkers_need():
    import configparser

    config = configparser.ConfigParser()
    config.read(STUB.parents[1] / "setup.cfg")
    shipped = config["options.package_data"]["kdprune"]
    assert "py.typed" in shipped and "*.pyi" in shipped


@pytest.mark.parametrize("former", sorted(kdprune._FORMER))
def test_a_former_name_is_the_present_one(former):
    with pytest.warns(DeprecationWarning, match=f"kdprune.{former} is now"):
        found = getattr(kdprune, former)
    assert found is getattr(kdprune, kdprune._FORMER[former])


def test_names_are_of_the_modules_that_are_named():
    for name, module in kdprune._PUBLIC.items():
        assert name in importlib.import_module(module).__all__


@pytest.mark.parametrize(
    ("name", "misspelt", "meant"),
    [
        ("compress", "max_drp", "max_drop"),
        ("take_model", "input_rang", "input_range"),
        ("prune_channels", "target_mac", "target_macs"),
        ("plan_channels", "importnce", "importance"),
        ("prune_magnitude", "sparsty", "sparsity"),
        ("quantize_model", "preserve_sparcity", "preserve_sparsity"),
        ("cluster_weights", "cluster", "clusters"),
        ("convert_tflite", "range_methods", "range_method"),
        ("check_tflite", "max_drops", "max_drop"),
        ("write_kit", "clases", "classes"),
        ("evaluate_model", "resolvr", "resolver"),
        ("measure_latency", "thread", "threads"),
        ("diagnose", "lables", "labels"),
        ("Distiller", "loses", "losses"),
    ],
)
def test_a_misspelt_argument_names_the_nearest(name, misspelt, meant):
    with pytest.raises(TypeError, match=f"(?i){misspelt}'.*did you mean '{meant}'"):
        getattr(kdprune, name)(**{misspelt: 1})


def test_a_misspelt_argument_of_compile_names_the_nearest():
    with pytest.raises(TypeError, match="(?i)did you mean 'temperature'"):
        kdprune.Distiller.compile(None, temprature=1)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="prune_chanels"):
        kdprune.prune_chanels  # noqa: B018


def unsigned(body):
    """Yields the names of public functions and methods without full signatures."""
    for node in body:
        public = not getattr(node, "name", "_").startswith("_")
        if isinstance(node, ast.ClassDef) and public:
            yield from (f"{node.name}.{name}" for name in unsigned(node.body))
        elif isinstance(node, ast.FunctionDef) and (public or node.name == "__init__"):
            given = node.args
            arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            arguments += [one for one in (given.vararg, given.kwarg) if one]
            named = [one for one in arguments if one.arg not in ("self", "cls")]
            typed = all(one.annotation is not None for one in named)
            returned = node.returns is not None or (node.name == "__init__" and named)
            if not (typed and returned):
                yield node.name


def test_every_public_function_has_a_full_signature():
    files = STUB.parent.rglob("*.py")
    found = {
        # A kit carries it to devices, as a script of its own.
        f"{path.relative_to(STUB.parent)}: {name}"
        for path in files
        if path.name != "selftest.py"
        for name in unsigned(ast.parse(path.read_text()).body)
    }
    assert found == set()


def test_the_check_of_signatures_sees_what_is_missing():
    source = """
class A:
    def __init__(self, b): ...
    def c(self) -> None: ...
    def d(self): ...
    def _e(self, f): ...
def g(*h) -> None: ...
"""
    assert list(unsigned(ast.parse(source).body)) == ["A.__init__", "A.d", "g"]

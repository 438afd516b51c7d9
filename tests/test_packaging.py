"""The package as it is installed: versions, requirements, quick answers."""

import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import kdprune

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(
    path
    for path in (ROOT / "scripts").glob("*.py")
    # Programs of their own, not stages.
    if not path.name.startswith(("bench_", "gather_", "plain_keras", "plot_methods"))
)
PYTHONS = ("3.11", "3.12", "3.13")

needs_cli = pytest.mark.skipif(
    not (ROOT / "kdprune" / "cli").exists(), reason="kdprune/cli is not there"
)
needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not there")


def read_setup():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup


def requirements():
    """Returns what setup.cfg requires, its extras included."""
    setup = read_setup()
    lines = [
        setup["options"]["install_requires"],
        *setup["options.extras_require"].values(),
    ]
    parsed = [Requirement(line) for text in lines for line in text.split("\n") if line]
    return [requirement for requirement in parsed if requirement.name != "kdprune"]


def pins(environment=None):
    """Returns `{name: [version, ...]}` of constraints.txt where its markers hold."""
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), f"not exact: {line}"
        if pin.marker is None or pin.marker.evaluate(environment):
            version = str(pin.specifier).removeprefix("==")
            pinned.setdefault(canonicalize_name(pin.name), []).append(version)
    return pinned


def help_of(code):
    """Runs `code` with `--help`; returns its output and the modules it loaded."""
    code = (
        "import runpy, sys\n"
        "sys.argv = ['kdprune', '--help']\n"
        f"try:\n    {code}\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print('LOADED', *sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    output, _, loaded = run.stdout.rpartition("LOADED")
    return output, set(loaded.split())


@needs_cli
def test_help_answers_quickly_and_without_tensorflow():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        output, loaded = help_of("from kdprune import cli; cli.main()")
        seconds.append(time.perf_counter() - start)
    assert "usage: kdprune" in output
    assert not {"tensorflow", "tf_keras", "keras"} & loaded
    # Half a second on an idle machine; TensorFlow alone takes several.
    assert min(seconds) < 5


@needs_cli
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_explains_itself_without_tensorflow(script):
    code = f"runpy.run_path({str(script)!r}, run_name='__main__')"
    output, loaded = help_of(code)
    assert f"python scripts/{script.name} configs/cifar10.yaml" in output
    assert not {"tensorflow", "tf_keras", "keras"} & loaded


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_at_most_forty_lines(script):
    assert len(script.read_text().splitlines()) <= 40


def test_installed_version_is_the_version_of_the_source():
    try:
        installed = importlib.metadata.version("kdprune")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("kdprune runs from its checkout, without being installed")
    assert installed == kdprune.__version__, "install again: pip install -e ."


def test_changelog_names_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## .*{re.escape(kdprune.__version__)}", changelog, re.M)


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_every_requirement_within_its_range(python):
    pinned = pins({"python_version": python, "python_full_version": f"{python}.0"})
    for requirement in requirements():
        versions = pinned.get(canonicalize_name(requirement.name), [])
        assert len(versions) == 1, f"{requirement.name}: {versions}"
        assert versions[0] in requirement.specifier, requirement.name


def test_constraints_pin_what_the_requirements_pull_in():
    pinned, seen, missing = pins(), set(), set()
    waiting = [(requirement, "") for requirement in requirements()]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if name not in pinned:
            missing.add(name)
        if name in seen:
            continue
        seen.add(name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that this environment does without
        waiting += [(Requirement(need), "") for need in needs]
    assert missing == set()
    assert len(seen) > len(requirements())


def test_python_versions_agree_wherever_they_are_named():
    setup = read_setup()
    allowed = SpecifierSet(setup["options"]["python_requires"])
    minors = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in allowed]
    assert tuple(minors) == PYTHONS
    for python in PYTHONS:
        named = f"Programming Language :: Python :: {python}"
        assert named in setup["metadata"]["classifiers"].split("\n")
    makefile = (ROOT / "Makefile").read_text()
    (named,) = [line for line in makefile.splitlines() if line.startswith("PYTHON :=")]
    expected = [f"python{python}" for python in PYTHONS]
    assert sorted(named.split()[2:-1]) == expected and named.endswith(" python3")


@needs_make
def test_make_says_which_interpreters_it_looked_for(tmp_path):
    run = subprocess.run(
        ["make", "--silent", "demo", "PYTHON=no-such-python false", f"VENV={tmp_path}"],
        cwd=ROOT,
        # The make that runs these tests must not pass its own variables on.
        env={name: os.environ[name] for name in os.environ if "MAKE" not in name},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode != 0
    message = run.stderr.splitlines()[0]
    assert message.startswith("kdprune needs Python 3.11 to 3.13")
    assert "looked for: no-such-python false" in message

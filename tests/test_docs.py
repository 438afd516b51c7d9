"""README and docs: their code runs, recipes are valid, links lead somewhere."""

import ast
import importlib.util
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

import kdprune
from kdprune import config

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    + [ROOT / "results" / "LOG.md", *DOCS.rglob("*.md")]
)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
# Pages whose Python trains nothing.
QUICK = ("docs/data.md", "docs/doctor.md", "docs/evaluation.md", "docs/extending.md")
# What makes a page's Python and recipes small enough to run in a test.
SMALLER = (
    (
        r'load_dataset\("shapes"\)',
        'load_dataset("shapes", train_images=240, test_images=40)',
    ),
    (r"epochs(=|: )\d+", r"epochs\g<1>1"),
    (r"image_size: \[\d+, \d+\]", "image_size: [16, 16]"),
    (r"max_drop: 0\.\d+", "max_drop: 0.5"),
)


def tool(name, folder=DOCS / "tools"):
    """A program of docs/tools, as a module."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page, *languages):
    """The code of a page's fenced blocks in these languages."""
    return [
        textwrap.dedent(code)
        for _, language, code in FENCE.findall(page.read_text())
        if language in languages
    ]


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def smaller(text):
    for pattern, replacement in SMALLER:
        text = re.sub(pattern, replacement, text)
    return text


def with_blocks(*languages):
    return [page for page in PAGES if blocks(page, *languages)]


def python_pages():
    return [
        pytest.param(
            page,
            id=name_of(page),
            marks=() if name_of(page) in QUICK else pytest.mark.slow,
        )
        for page in with_blocks("python")
    ]


@pytest.fixture
def registers():
    """What a page registers is forgotten after its test."""
    from kdprune import data, distill, models, prune
    from kdprune.distill.features import FEATURE_LOSSES
    from kdprune.prune.channels.rules import LAYER_RULES

    tables = [distill.LOGIT_LOSSES, FEATURE_LOSSES, prune.IMPORTANCES, LAYER_RULES]
    tables += [data.DATASETS, models.MODELS, config.KINDS]
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


@pytest.mark.parametrize("page", python_pages())
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, registers):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for number, code in enumerate(blocks(page, "python"), start=1):
        where = f"{name_of(page)}, Python block {number}"
        exec(compile(smaller(code), where, "exec"), namespace)


@pytest.mark.parametrize("page", with_blocks("python"), ids=name_of)
def test_python_names_of_the_package_are_public(page):
    used = {
        node.attr
        for code in blocks(page, "python")
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "kdprune"
    }
    modules = {path.stem for path in (ROOT / "kdprune").iterdir()}
    assert used - set(kdprune.__all__) - modules == set()


def commands(page):
    """The command lines of a page: of its blocks, and `kdprune …` in its text."""
    lines = []
    for block in blocks(page, "bash", "sh"):
        joined = block.replace("\\\n", " ")
        lines += [line for line in joined.splitlines() if line.strip()]
    for block in blocks(page, "yaml"):
        content = yaml.safe_load(block)
        if "apiVersion" in content:  # A job of Kubernetes.
            for container in content["spec"]["template"]["spec"]["containers"]:
                lines += container["args"]
    text = FENCE.sub("", page.read_text())
    inline = (" ".join(code.split()) for code in INLINE.findall(text))
    started = r"kdprune (run|evaluate|compare|bench|report) [^ ]|python scripts/"
    lines += [line for line in inline if re.match(started, line)]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


COMMANDS = [
    pytest.param(words, id=f"{name_of(page)}: {' '.join(words)[:60]}")
    for page in PAGES
    for words in commands(page)
]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_is_understood(words, capsys):
    program, *arguments = words
    if program == "kdprune":
        from kdprune.cli import app

        options = app._parser().parse_args(arguments)
        recipe = getattr(options, "recipe", None)
        if recipe and recipe.startswith("configs/"):
            config.load_recipe(ROOT / recipe, options.overrides)
    elif program == "sbatch":
        if "--wrap" in arguments:
            wrapped = arguments[arguments.index("--wrap") + 1]
            test_a_command_is_understood(shlex.split(wrapped), capsys)
    elif program == "dask":
        pytest.importorskip("distributed", reason="needs the extra: cluster")
        from distributed.cli import dask_scheduler, dask_worker

        commands = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}
        commands[arguments[0]].make_context(program, arguments[1:])
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert [word for word in arguments if "=" not in word][0] in targets
    elif program == "python" and arguments[0].startswith(("scripts/", "docs/")):
        source = (ROOT / arguments[0]).read_text()
        for option in [word for word in arguments if word.startswith("--")]:
            assert f'"{option}"' in source, option
    else:
        assert program in ("pip", "python", ".ci/run")


@pytest.mark.parametrize("page", with_blocks("yaml"), ids=name_of)
def test_a_recipe_of_a_page_is_valid(page):
    for code in blocks(page, "yaml"):
        content = yaml.safe_load(code)
        if "apiVersion" in content:
            continue  # Of Kubernetes; its commands are among `commands`.
        if "stages" in content:
            config.parse_recipe(content)
            continue
        for key, value in content.items():
            settings = settings_of(key, value)
            if settings is not None:
                settings.model_validate(value)


def settings_of(key, value):
    """The class that checks a part of a recipe; None for a plain value."""
    fields = config.Recipe.model_fields
    if isinstance(value, dict) and "kind" in value:
        return config.KINDS[value["kind"]]
    if key == "training":
        return config.KINDS["train"].model_fields["training"].annotation
    if key == "data":
        return fields["data"].annotation
    assert key in fields, key
    return None


def test_the_checks_of_pages_see_mistakes():
    for words in (["kdprune", "run"], ["make", "tset"], ["python", "scripts/no.py"]):
        with pytest.raises((SystemExit, AssertionError, OSError)):
            test_a_command_is_understood(words, None)
    with pytest.raises(ValueError, match="epoch"):
        settings_of("training", {}).model_validate({"epoch": 3})


def write_images(folder):
    """Some images of ten classes as PNG files, and a model of them."""
    from PIL import Image

    data = kdprune.load_dataset("shapes", train_images=300, test_images=60)
    for part in ("train", "test"):
        split = getattr(data, part)
        for number, (pixels, label) in enumerate(
            zip(split.images[:, ::2, ::2], split.labels, strict=True)
        ):
            place = folder / "images" / part / data.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{number}.png")
    model = kdprune.build_model("resnet8", input_shape=(16, 16, 3))
    for name in ("my_model.keras", "my_teacher.keras"):
        kdprune.save_model(model, folder / name)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["from a teacher", "your own model"])
def test_the_recipes_of_the_readme_run_to_the_end(number, tmp_path, monkeypatch):
    from kdprune import cli

    monkeypatch.chdir(tmp_path)
    write_images(tmp_path)
    pages = (ROOT / "README.md", DOCS / "getting-started.md")
    page = blocks(pages[number], "yaml")
    recipe = smaller(next(text for text in page if "kind: load" in text))
    Path("mine.yaml").write_text(recipe)
    # Models that answer by chance tell no pixel range; the gate is tested elsewhere.
    loaded = ("teacher", "net")[number]
    loose = ["--set", f"stages.{loaded}.input_range=[0, 1]"]
    loose += ["--set", "stages.export.max_disagreement=0.99"]
    assert cli.main(["run", "mine.yaml", *loose]) == 0
    made = {path.name for path in Path("runs/mine").iterdir()}
    assert {"metrics.json", "model_int8.tflite", "model_uint8.tflite"} <= made
    assert Path("runs/mine/kit/my_model/MODEL_CARD.md").is_file()
    assert cli.main(["run", "mine.yaml", *loose, "--dry-run"]) == 0


def test_the_recipe_reference_is_current():
    # Else: python docs/tools/recipe_reference.py
    assert (DOCS / "recipe-reference.md").read_text() == tool("recipe_reference").page()


def test_every_key_of_every_stage_kind_is_in_the_reference():
    page = (DOCS / "recipe-reference.md").read_text()
    for kind, cls in config.KINDS.items():
        _, _, rest = page.partition(f"### `kind: {kind}`\n")
        section = rest.partition("\n### ")[0]
        for name, field in cls.model_fields.items():
            if name not in ("kind", "seed"):
                assert f"| `{field.alias or name}` |" in section, (kind, name)
                # The text below a field in its class.
                assert field.description, (kind, name)


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = FENCE.sub("", page.read_text())
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [
        re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", title).lower() for title in titles
    ]
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain}


def links(page):
    text = INLINE.sub("", FENCE.sub("", page.read_text()))
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if ":" not in link]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target == DOCS / "changelog.md":
            continue  # Made from CHANGELOG.md by the site.
        assert target.exists(), link
        assert ROOT in target.parents, link
        if anchor:
            assert anchor in anchors(target), link


def test_the_check_of_links_finds_links_and_headings():
    assert "docs/benchmarks/index.md" in links(ROOT / "README.md")
    assert "the-ship-kit" in anchors(DOCS / "export.md")
    assert "as-a-recipe" in anchors(ROOT / "README.md")


def test_the_architecture_page_says_who_may_import_whom():
    subpackages = tool("test_layering", ROOT / "tests").SUBPACKAGES
    page = (DOCS / "architecture.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)/` \|.*\| ([^|]*) \|$", page, re.MULTILINE))
    assert set(subpackages) <= set(rows)
    for subpackage, allowed in subpackages.items():
        named = set(re.findall(r"\w+", rows[subpackage]))
        assert named == allowed, subpackage
    folders = {path.parent.name for path in (ROOT / "kdprune").glob("*/__init__.py")}
    assert folders == set(rows)


def documented():
    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    return re.findall(r"^::: (\S+)$", text, re.MULTILINE)


def test_the_api_reference_has_every_public_name():
    found = {name.rpartition(".")[2] for name in documented()}
    assert set(kdprune.__all__) - {"__version__"} <= found


def test_the_names_of_the_api_reference_exist():
    for name in documented():
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def measured():
    metrics = json.loads((ROOT / "results/cifar10/metrics.json").read_text())
    return {model["name"]: model for model in metrics["models"]}


def readme_rows():
    """The rows of the README's table of results: `{first cell: the others}`."""
    lines = (ROOT / "README.md").read_text().splitlines()
    rows = [line.strip("| ").replace("*", "").split(" | ") for line in lines]
    return {row[0].strip(): row[1:] for row in rows if len(row) == 4}


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ("teacher, float32", "teacher"),
        ("student trained alone, float32", "student_alone"),
        ("student distilled, float32", "student_float32"),
        ("student distilled, int8", "quantized_int8"),
        ("student distilled, 50 % sparsity, int8", "pruned_quantized_int8"),
    ],
)
def test_the_readme_says_what_was_measured(row, name):
    model = measured()[name]
    low, high = (100 * bound for bound in model["accuracy_ci"])
    accuracy, size, macs = readme_rows()[row]
    assert accuracy == f"{100 * model['accuracy']:.2f} ({low:.2f} to {high:.2f})"
    assert size in ("–", f"{model['bytes']:,}")
    assert macs == f"{model['macs'] / 1e6:.2f} M"


def test_the_readme_says_what_mlperf_tinys_files_scored():
    from kdprune.report.tradeoffs import MLPERF_TINY

    rows = readme_rows()
    found = {model.name: model for model in MLPERF_TINY}
    for row, name in (
        ("MLPerf Tiny ResNet-8, int8", "MLPerf ResNet-8 int8"),
        ("MLPerf Tiny ResNet-8 large, int8", "MLPerf large int8"),
    ):
        model = found[name]
        expected = [f"{100 * model.accuracy:.2f}", f"{model.bytes:,}"]
        assert rows[row][:2] == expected
        assert rows[row][2] == f"{model.macs / 1e6:.2f} M"


def said_by(metrics):
    """What a table may say of a study: accuracies, deviations, intervals, bytes."""
    groups, found = {}, set()
    for model in metrics["models"]:
        stage = re.sub(r"--seed=\d+|seed=\d+--", "", model["stage"])
        group = groups.setdefault((stage, model["format"], model.get("dtype")), {})
        group[model["stage"], model["path"]] = model
    for models in map(list, map(dict.values, groups.values())):
        accuracies = [100 * model["accuracy"] for model in models]
        mean = f"{statistics.fmean(accuracies):.2f}"
        found.add(mean)
        if len(models) > 1:
            found.add(f"{mean} ± {statistics.stdev(accuracies):.2f}")
        else:
            low, high = (100 * bound for bound in models[0]["accuracy_ci"])
            found.add(f"{mean} ({low:.2f} to {high:.2f})")
        for key in ("bytes", "bytes_gzip"):
            found.add(f"{statistics.fmean(model[key] for model in models):,.0f}")
    return found


def said_by_bench(content):
    """What a table may say of a benchmark: accuracies, alone or as a range."""
    found = set()
    for rows in content["networks"].values():
        tests = [f"{row['test']:.2f}" for row in rows]
        found.update(tests)
        found.update(f"{a} ({row['name']})" for a, row in zip(tests, rows, strict=True))
    return found


def figures_in(page):
    """`(row, figure)` of a page's tables, as far as they are of the study's files."""
    header = []
    for line in page.read_text().splitlines():
        cells = [c.replace("*", "").strip() for c in line[1:-1].split("|")]
        if not line.startswith("| "):
            header = []
            continue
        header = header or cells
        # Scored beside the study, and told with their own source.
        if re.match("kdprune, |ai-edge-quantizer|.*MLPerf Tiny", cells[0]):
            continue
        for name, cell in zip(header, cells, strict=True):
            figure = re.sub(r" \(int8: .*\)| bytes$", "", cell)
            if re.fullmatch(r"\d\d\.\d\d( ± .*| \(.*\))?|\d+,\d{3}", figure):
                if name not in ("claimed %", "validation %"):
                    yield cells[0], figure


def studies():
    found = {}
    for page in (DOCS / "benchmarks").glob("*.md"):
        reports = [page.parent / link for link in links(page) if "/report.md" in link]
        if reports:
            found[page] = [report.parent / "metrics.json" for report in reports]
    return sorted(found.items())


@pytest.mark.parametrize(
    ("page", "records"), studies(), ids=lambda value: getattr(value, "stem", "records")
)
def test_a_benchmark_page_says_what_was_measured(page, records):
    measured = set().union(*(said_by(json.loads(r.read_text())) for r in records))
    benches = [link for link in links(page) if link.endswith("unequal_channels.json")]
    for link in benches:
        measured |= said_by_bench(json.loads((page.parent / link).read_text()))
    figures = list(figures_in(page))
    assert [figure for figure in figures if figure[1] not in measured] == []
    assert len(figures) > 5 or page.stem in ("index", "distillation")


def test_the_page_of_own_models_says_what_was_measured():
    page = (DOCS / "benchmarks" / "your-own.md").read_text()
    # Else: python docs/tools/your_own.py
    rows = tool("your_own").lines()
    assert rows
    assert [row for row in rows if row not in page.splitlines()] == []


def test_the_page_of_families_says_what_was_measured():
    page = (DOCS / "benchmarks" / "families.md").read_text()
    # Else: python docs/tools/your_own.py
    rows = tool("your_own").lines_of_families()
    assert rows
    assert [row for row in rows if row not in page.splitlines()] == []


def test_the_readme_says_of_own_models_what_was_measured():
    readme = (ROOT / "README.md").read_text()
    # Else: python docs/tools/your_own.py
    assert [row for row in tool("your_own").readme() if row not in readme] == []


def test_the_page_of_own_models_shows_the_script_that_was_counted():
    page = DOCS / "benchmarks" / "your-own.md"
    script = (ROOT / "scripts" / "plain_keras_convert.py").read_text()
    assert blocks(page, "py") == [script]


def test_own_models_are_compressed_and_wrong_ranges_and_orders_refused():
    record = json.loads((ROOT / "results" / "your_own" / "five.json").read_text())
    for name, found in record["models"].items():
        files, measure = found["files"], found["measure"]
        assert found["status"] == 0, name
        least = files["original"][measure] - (2 if name == "half" else 1)
        assert files["kdprune"][measure] >= least, name
        # A file that no images tell from the original may be below another by chance.
        as_good = found["against_original"]["interval"][1] >= 0
        for other in {"converter", "litert"} & set(files):
            best = found[f"against_{other}"]["interval"][1]
            assert as_good or best >= 0, (name, other)
        for wrong in found.get("refused", ()):
            assert wrong["status"] == 2, (name, wrong)
            assert "\n" not in wrong["said"]


def test_the_scaling_on_paper_is_as_reckoned():
    scaling = tool("scaling")
    page = (DOCS / "scale.md").read_text()
    assert all(scaling.table(grows) in page for grows in (False, True))
    # By hand: 64 hosts, 102.4 MB over 1e10 bytes a second and 126 messages of 20 us.
    step = 0.003 + 0.397 / 64 + 2 * 63 / 64 * 102.4e6 / 1e10 + 126 * 20e-6
    large = scaling.speedup(64, scaling.LARGE, scaling.ETHERNET_100)
    assert large == pytest.approx(0.4 / step)
    grown = scaling.speedup(64, scaling.LARGE, scaling.ETHERNET_100, grows=True)
    step += 0.397 * 63 / 64
    assert grown == pytest.approx(64 * 0.4 / step)
    free = scaling.Network("free", float("inf"), 0)
    for hosts in (1, 2, 64):
        assert scaling.speedup(hosts, scaling.SMALL, free, fixed=0) == hosts
    assert scaling.speedup(1, scaling.LARGE, scaling.ETHERNET_1) == 1


def test_the_picture_shows_what_was_measured():
    from PIL import Image

    overview = tool("overview")
    drawn = json.loads(Image.open(overview.PICTURE).text["Comment"])
    # Else: python docs/tools/overview.py
    assert drawn == {name: list(point) for name, point in overview.figures().items()}


@pytest.mark.slow
def test_the_table_of_networks_is_that_of_the_factories():
    from kdprune.models import MODELS

    rows = re.findall(
        r"^\| `(\w+)` \| (.*) \| ([\d,]+) \| ([\d.]+) M \|$",
        (DOCS / "getting-started.md").read_text(),
        re.MULTILINE,
    )
    assert {name for name, *_ in rows} == set(MODELS)
    for name, _, parameters, macs in rows:
        model = kdprune.build_model(name)
        assert parameters == f"{model.count_params():,}"
        assert macs == f"{kdprune.count_macs(model) / 1e6:.2f}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 220


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
        + ["--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "recipe-reference" / "index.html").is_file()
    # Nothing is fetched by who reads it.
    page = (tmp_path / "index.html").read_text()
    loaded = re.findall(r'<(?:script|img)[^>]+src="(https?:[^"]*)"', page)
    loaded += re.findall(r'<link[^>]+stylesheet[^>]+href="(https?:[^"]*)"', page)
    assert loaded == []

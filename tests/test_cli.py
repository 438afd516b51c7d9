"""The command: what a user sees, and one clear line with status 2 when wrong."""

import json
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from kdprune import cli
from kdprune.cli import recipes
from kdprune.models import build_model, save_model
from kdprune.runner.errors import explain

QUICKSTART = str(pathlib.Path(__file__).parents[1] / "configs" / "quickstart.yaml")
# Of the recipe as it is, whose ten thousand images take seconds to make.
SMALL = ["--set", "data.train_images=100", "--set", "data.test_images=20"]
CIFAR10 = str(pathlib.Path(__file__).parents[1] / "configs" / "cifar10.yaml")


def refused(capsys, *arguments):
    """Runs a command that must fail; returns its one line."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1 and lines[0].startswith("kdprune: "), lines
    return lines[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.keras"
    save_model(build_model("article_student"), path)
    return path


@pytest.fixture
def images(tmp_path):
    """Ten tiny images in class folders, train and test."""
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "images"


def test_a_misspelt_key_is_one_line(capsys, tmp_path):
    line = refused(
        capsys,
        "run",
        QUICKSTART,
        "--output",
        tmp_path,
        "--set",
        "stages.student.temprature=1",
    )
    assert "stages.student.temprature: unknown key; did you mean 'temperature'?" in line
    assert not list(tmp_path.iterdir())


def test_missing_data_names_the_ways_to_give_it(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("KDPRUNE_DATA_DIR", raising=False)
    line = refused(
        capsys, "run", CIFAR10, "--output", tmp_path / "o", "--data-dir", tmp_path
    )
    assert "--data-dir" in line or "data_dir" in line
    assert "cifar-10" in line


def test_an_output_that_is_a_file_is_refused(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(capsys, "run", QUICKSTART, "--output", tmp_path / "file")
    assert "expected an output folder that can be written" in line


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.tflite", b"\x1c\x00\x00\x00TFL3\x00\x00"),
        ("words.tflite", b"these are words, not a model"),
        ("words.keras", b"these are words, not a model"),
        ("words.h5", b"these are words, not a model"),
        ("model.onnx", b"another format"),
    ],
)
def test_what_is_not_a_model_is_refused_by_name(
    capsys, tmp_path, images, name, content
):
    (tmp_path / name).write_bytes(content)
    data = ["--dataset", "folder", "--data-path", images]
    line = refused(capsys, "evaluate", tmp_path / name, *data)
    assert name in line


@pytest.mark.parametrize(
    "units, received", [(10, "10 outputs by sigmoid"), (1, "1 output by")]
)
@pytest.mark.quick("1-1 output by")
def test_a_model_of_another_task_is_no_teacher(capsys, tmp_path, units, received):
    import tf_keras as keras

    images = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(images)
    x = keras.layers.Dense(units, activation="sigmoid")(x)
    path = tmp_path / "sigmoid.keras"
    save_model(keras.Model(images, x), path)
    load = f"stages.teacher={{kind: load, file: {path}}}"
    output = ["--output", tmp_path / "o"]
    line = refused(capsys, "run", QUICKSTART, *output, *SMALL, "--set", load)
    assert "by softmax or logits" in line and received in line


def test_folders_of_other_files_are_left_alone(capsys, tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "thesis.txt").write_text("years of work")
    line = refused(capsys, "run", QUICKSTART, "--output", tmp_path, *SMALL)
    assert "got a folder of other files" in line
    assert (tmp_path / "teacher" / "thesis.txt").read_text() == "years of work"


def test_two_runs_do_not_share_a_folder(capsys, tmp_path):
    import fcntl

    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = refused(capsys, "run", QUICKSTART, "--output", tmp_path)
    assert "another run is under way" in line


def test_a_report_is_drawn_again_from_a_folder_alone(capsys, tmp_path):
    assert "metrics.json" in refused(capsys, "report", tmp_path)


def test_an_unreadable_image_and_an_empty_class_are_named(capsys, images, model):
    arguments = ["evaluate", model, "--dataset", "folder", "--data-path", images]
    (images / "test" / "cat" / "0.png").write_bytes(b"not an image")
    assert "0.png" in refused(capsys, *arguments)
    for path in (images / "train" / "dog").iterdir():
        path.unlink()
    assert "dog" in refused(capsys, *arguments)


@pytest.mark.parametrize("given", ["255,0", "byte", "0", "0,1,2", "0,nan"])
@pytest.mark.parametrize("command", ["evaluate", "doctor"])
def test_what_is_no_input_range_is_refused(capsys, model, command, given):
    more = ["--dataset", "shapes"] if command == "evaluate" else []
    line = refused(capsys, command, model, *more, "--input-range", given)
    assert line == (
        "kdprune: --input-range expects LOW,HIGH such as 0,255 or imagenet or caffe. "
        f"Received: {given!r}"
    )


def test_the_doctor_reads_labels_as_the_other_commands_do(capsys, model, tmp_path):
    line = refused(capsys, "doctor", model, "--labels", tmp_path / "none.txt")
    assert "labels file not found" in line
    twice = tmp_path / "labels.txt"
    twice.write_text("0 cat\n1 cat\n")
    line = refused(capsys, "doctor", model, "--labels", twice)
    assert "each once. Received: 'cat' twice" in line


def test_evaluate_takes_the_order_of_the_outputs_from_a_file(capsys, tmp_path):
    """A model whose first output is the class that comes second in the folder."""
    import tf_keras as keras

    for split in ("train", "test"):
        for name, level in (("cat", 40), ("dog", 200)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(5):
                pixels = np.full((8, 8, 3), level + index, np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    image = keras.Input((8, 8, 3))
    x = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(image))
    net = keras.Model(image, x)
    net.layers[-1].set_weights([np.array([[9.0, -9.0]] * 3), np.array([-13.5, 13.5])])
    save_model(net, tmp_path / "net.keras")
    out, labels = tmp_path / "figures.json", tmp_path / "labels.txt"
    arguments = ["evaluate", tmp_path / "net.keras", "--dataset", "folder"]
    arguments += ["--data-path", tmp_path / "images", "--json", out, "--no-latency"]
    arguments += ["--input-range", "0,1"]

    def accuracy(*more):
        assert cli.main(list(map(str, [*arguments, *more]))) == 0
        return json.loads(out.read_text())["models"][0]["accuracy"]

    assert accuracy() == 0
    labels.write_text("Dog\ncat\n")
    assert accuracy("--labels", labels) == 1
    assert "in another order than the classes" in capsys.readouterr().out
    labels.write_text("dog\ncow\n")
    line = refused(capsys, *arguments, "--labels", labels)
    assert "cow" in line and "cat, dog" in line
    assert "labels file not found" in refused(capsys, *arguments, "--labels", "no.txt")


@pytest.mark.slow
def test_evaluate_prints_and_writes_the_figures(capsys, tmp_path, model):
    out = tmp_path / "figures.json"
    assert (
        cli.main(["evaluate", str(model), "--dataset", "shapes", "--json", str(out)])
        == 0
    )
    assert "% of 2000 test images" in capsys.readouterr().out
    content = json.loads(out.read_text())
    assert content["models"][0]["parameters"] == 31_082
    assert content["dataset"]["source"].startswith("shapes")


def test_compare_of_a_model_with_itself_finds_no_difference(capsys, tmp_path, images):
    out, path = tmp_path / "compared.json", str(tmp_path / "cats.keras")
    save_model(build_model("article_student", classes=2), path)
    arguments = ["compare", path, path, "--dataset", "folder"]
    arguments += ["--data-path", str(images)]
    assert cli.main([*arguments, "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "+0.00 points" in text and "not significant" in text
    comparison = json.loads(out.read_text())["comparison"]
    assert comparison["difference"] == 0


def test_a_model_of_other_classes_than_the_datas_is_not_measured(
    capsys, tmp_path, images
):
    ours, theirs = (str(tmp_path / name) for name in ("two.keras", "thousand.keras"))
    save_model(build_model("article_student", classes=2), ours)
    save_model(build_model("article_student", classes=1000), theirs)
    data = ["--dataset", "folder", "--data-path", images]
    said = f"{theirs}: expected 2 outputs, one for each class of the data. Received: 10"
    assert said in refused(capsys, "evaluate", theirs, *data)
    assert said in refused(capsys, "compare", theirs, theirs, *data)


def test_notices_of_tracing_are_kept_from_who_runs_many_models(caplog):
    import logging

    from kdprune.cli.quiet import import_tensorflow_quietly

    said = logging.getLogger("tensorflow")
    propagated, filters = said.propagate, list(said.filters)
    said.propagate = True
    try:
        import_tensorflow_quietly()
        said.warning("5 out of the last %d calls triggered tf.function retracing", 9)
        said.warning("gradients do not exist")
        import_tensorflow_quietly()
        assert len(said.filters) == len(set(said.filters))
    finally:
        said.propagate, said.filters[:] = propagated, filters
    assert [record.getMessage() for record in caplog.records] == [
        "gradients do not exist"
    ]


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        cli.main(["run", str(tmp_path / "absent.yaml"), "--debug"])


def test_a_dry_run_shows_the_stages_and_trains_nothing(capsys, tmp_path):
    output = tmp_path / "run"
    arguments = ["run", QUICKSTART, "--output", str(output), "--dry-run", *SMALL]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "teacher (train): to do" in text and "temperature: " in text
    assert "in all about" in text
    assert not output.exists()


@pytest.mark.parametrize(
    ("role", "stages"),
    [
        ("train_teacher", {"teacher"}),
        ("train_student", {"student_alone"}),
        ("distill", {"student"}),
        ("prune", {"pruned"}),
        ("export", {"export", "kit"}),
        ("quantize", {"quantized", "pruned_quantized"}),
        ("report", {"report"}),
    ],
)
def test_each_role_stands_for_its_stages(role, stages):
    from kdprune.config import load_recipe

    recipe = load_recipe(QUICKSTART)
    wanted = recipes.wanted(role)
    assert {name for name in recipe.stages if wanted(recipe, name)} == stages


@pytest.mark.slow
def test_a_script_runs_its_stage_and_what_that_needs(tmp_path):
    script = pathlib.Path(QUICKSTART).parents[1] / "scripts" / "train_student.py"
    subprocess.run(
        [sys.executable, script, QUICKSTART, "--output", tmp_path]
        + ["--set", "data.train_images=300", "--set", "data.test_images=100"]
        + ["--set", "stages.student_alone.training.epochs=1"],
        check=True,
        timeout=300,
        capture_output=True,
    )
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert folders - {".locks"} == {"student_alone"}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_what_ends_a_command_from_outside_says_how_to_go_on(name):
    program = (
        "import os, signal, sys\n"
        "from kdprune.cli.stopping import stop_in_a_line\n"
        # What runs in the background may be given these signals as ignored.
        "for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n"
        "    signal.signal(one, signal.SIG_DFL)\n"
        "if sys.argv[2:]: signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "stop_in_a_line()\n"
        "os.kill(os.getpid(), getattr(signal, sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", program, name]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 128 + getattr(signal, name)
    assert result.stderr.strip() == (
        "stopped; run the same command again to go on from here"
    )
    ignored = subprocess.run([*command, "nohup"], capture_output=True, text=True)
    assert (ignored.returncode == 0) == (name == "SIGHUP")


def test_want_of_memory_is_one_line():
    (line,) = explain(MemoryError("Unable to allocate 2 TiB"))
    assert line.startswith("out of memory: Unable to allocate 2 TiB. Free are ")
    assert "take fewer or smaller images" in line

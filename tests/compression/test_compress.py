"""`kdprune compress`: what is written, what is refused, before anything is trained."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import tf_keras as keras
import yaml
from PIL import Image

import kdprune
from kdprune import cli
from kdprune.compression import Request, compress, memory
from kdprune.compression.checks import (
    check_target,
    count_provable,
    find_images,
)
from kdprune.compression.page import Counts, write_page
from kdprune.config import parse_recipe
from kdprune.models import build_model, save_model
from kdprune.runner.folder import Run
from kdprune.tflite import images_to_prove, provable_drop

PARTS = (("train", 40), ("validation", 20), ("test", 10))


def refused(capsys, *arguments):
    """Runs a command that must fail; returns its one line."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1 and lines[0].startswith("kdprune: "), lines
    return lines[0].removeprefix("kdprune: ")


def small_net(**options):
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3), **options)
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(image)
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(2, activation="softmax")(x))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "My Net-2.keras"
    save_model(small_net(), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Of cats and dogs 40 training images each and 5 test images."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 5)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


# --- What is written ---


def test_init_only_writes_a_recipe_that_says_what_was_asked(
    model, images, tmp_path, capsys
):
    out = tmp_path / "out"
    arguments = ["init", model, "--images", images, "-o", out, "--max-drop", "0.1"]
    arguments += ["--target-macs", "3e5", "--epochs", "7"]
    assert cli.main(list(map(str, arguments))) == 0
    assert [path.name for path in out.iterdir()] == ["recipe.yaml"]
    assert f"kdprune run {out}/recipe.yaml --output {out}" in capsys.readouterr().out
    text = (out / "recipe.yaml").read_text()
    content = yaml.safe_load(text)
    stages = content["stages"]
    assert content["name"] == "my_net_2"
    assert content["data"]["path"] == str(images)
    assert content["data"]["image_size"] == [16, 16]
    assert stages["original"] == {"kind": "load", "file": str(model)}
    parse_recipe(content)
    assert stages["smaller"]["target_macs"] == 300_000
    assert stages["smaller"]["training"]["epochs"] == 7
    assert stages["int8"]["max_drop"] == 0.1
    for stage in ("smaller", "int8"):
        assert stages[stage]["teacher"] == "original"
    # Each stage is introduced by a comment.
    for name in stages:
        if name != "report":
            above = text[: text.index(f"\n  {name}:\n")].splitlines()[-1]
            assert above.startswith("  # "), name


def test_the_recipe_is_the_same_whenever_it_is_written(tmp_path):
    request = Request(tmp_path / "net.h5", "cifar10")
    counts = Counts(1000, None, 200, 0.01)
    texts = {write_page(request, (32, 32, 3), counts) for _ in range(2)}
    assert len(texts) == 1
    parse_recipe(yaml.safe_load(texts.pop()))


@pytest.mark.parametrize(
    ("stem", "name"),
    [("net", "net"), ("My Net-2", "my_net_2"), ("2023", "model_2023"), ("ü", "model")],
)
def test_the_run_is_called_like_the_model(tmp_path, stem, name):
    request = Request(tmp_path / f"{stem}.keras", "shapes")
    assert request.name == name
    assert request.folder == tmp_path / f"{stem}-compressed"
    counts = Counts(1000, None, 200, 0.01)
    parse_recipe(yaml.safe_load(write_page(request, (32, 32, 3), counts)))


def test_without_a_target_nothing_is_removed_and_a_teacher_may_be_another(tmp_path):
    request = Request(tmp_path / "net.keras", "shapes", teacher=tmp_path / "big.keras")
    content = yaml.safe_load(write_page(request, (32, 32, 3), Counts(90, 40, 0, 0.1)))
    stages = content["stages"]
    assert "smaller" not in stages and "validation" not in content["data"]
    assert stages["int8"]["from"] == "original"
    assert stages["int8"]["teacher"] == "teacher"
    assert stages["teacher"]["file"] == str(tmp_path / "big.keras")


def test_few_images_are_seen_more_often_than_many(tmp_path):
    def epochs(train, **asked):
        request = Request(tmp_path / "net.keras", "shapes", ratio=0.5, **asked)
        page = write_page(request, (32, 32, 3), Counts(train, None, 100, 0.01))
        stages = yaml.safe_load(page)["stages"]
        return [stages[name]["training"]["epochs"] for name in ("smaller", "int8")]

    assert epochs(1_000) == [30, 6]
    assert epochs(45_100) == [6, 2]
    assert epochs(1_000_000) == [3, 1]
    assert epochs(1_000, epochs=10) == [10, 2]


@pytest.mark.parametrize(
    "given", [(0, 255), (-1.0, 1.0), "caffe", {"mean": (0.5,), "std": (1e-5,)}]
)
def test_a_range_that_was_given_stands_in_the_recipe(tmp_path, given):
    request = Request(tmp_path / "net.keras", "shapes", input_range=given)
    text = write_page(request, (32, 32, 3), Counts(1000, None, 200, 0.01))
    found = parse_recipe(yaml.safe_load(text)).stages["original"].input_range
    assert found == given


# --- What can be proven ---


def test_enough_images_are_held_out_to_prove_the_drop():
    counts = count_provable(0.01, 20_000, None)
    assert counts.held_out == 2_000  # A tenth is enough.
    counts = count_provable(0.01, 2_000, None)
    assert counts.held_out == 666 and counts.trained_on == 1334  # A third at most.
    counts = count_provable(0.01, 2_000, 300)
    assert counts.validated_on == 300 and counts.trained_on == 2_000


def test_the_drop_that_is_provable_is_that_of_the_number_of_images():
    assert images_to_prove(0.005) == 464
    for images in (10, 231, 464, 5_000):
        assert images_to_prove(provable_drop(images) + 1e-9) == images


def test_validation_images_that_the_data_has_are_counted(tmp_path, images):
    path = tmp_path / "arrays.npz"
    arrays = {f"x_{part}": np.zeros((n, 8, 8, 3), np.uint8) for part, n in PARTS}
    arrays |= {f"y_{part}": np.arange(n) % 2 for part, n in PARTS}
    np.savez(path, **arrays)

    def counts(given):
        found = find_images(Request(tmp_path / "a.keras", str(given)), {})
        return found.train, found.validation

    assert counts(path) == (40, 20)
    assert counts(images) == (80, None)
    assert counts(images / "train") == (64, None)  # A fifth becomes the test set.


@pytest.mark.parametrize(("train", "validation"), [(1_200, None), (5_000, 400)])
def test_too_few_images_name_the_drop_that_they_can_prove(train, validation):
    with pytest.raises(ValueError, match="at least 464 validation images") as error:
        count_provable(0.005, train, validation)
    provable = float(re.search(r"prove ([0-9.]+) at best", str(error.value))[1])
    assert images_to_prove(provable) <= 400
    assert count_provable(provable, train, validation)


# --- What is refused ---


def test_too_few_images_are_refused_before_anything_is_written(
    capsys, model, images, tmp_path
):
    out = tmp_path / "out"
    line = refused(capsys, "compress", model, "--images", images, "-o", out)
    assert "max_drop: 0.01 takes at least 231 validation images" in line
    assert "26 can be held out" in line and "can prove 0.0831 at best" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.keras"], "model not found: "),
        (["--images", "nowhere"], "images not found: "),
        (["--max-drop", "1"], "max_drop: expected a share between 0 and 1"),
        (["--ratio", "1.5"], "ratio: expected a share between 0 and 1"),
        (["--epochs", "0"], "epochs: expected a whole number, at least 1"),
        (["--input-range", "byte"], "--input-range expects LOW,HIGH"),
        (["--labels", "none.txt"], "labels not found: none.txt"),
        (["--teacher", "none.keras"], "teacher not found: "),
        (["-o", __file__], "output: expected a folder. Received: the file"),
        (["--images", __file__], "expected a folder of class folders, an .npz file"),
    ],
)
def test_a_wrong_argument_is_one_line(capsys, model, arguments, said):
    given = arguments if arguments[0].endswith(".keras") else [model, *arguments]
    if "--images" not in given:
        given += ["--images", "shapes"]
    assert said in refused(capsys, "compress", *given)


def test_a_range_the_wrong_way_round_is_refused(capsys, model, images, tmp_path):
    given = ["--images", images, "--max-drop", "0.1", "--input-range", "1,0"]
    line = refused(capsys, "compress", model, *given)
    assert "--input-range expects LOW,HIGH" in line and "'1,0'" in line
    with pytest.raises(ValueError, match="stages.original.input_range"):
        compress(model, images, input_range=(1, 0), max_drop=0.1, output=tmp_path)


def test_two_targets_are_not_understood(capsys, model):
    given = [str(model), "--images", "shapes", "--ratio", "0.5", "--target-macs", "9"]
    with pytest.raises(SystemExit) as error:
        cli.main(["compress", *given])
    assert error.value.code == 2 and "not allowed with" in capsys.readouterr().err
    with pytest.raises(ValueError, match="one target of target_macs, target_bytes"):
        compress(model, "shapes", ratio=0.5, target_macs=9)


def test_a_folder_of_another_models_run_is_refused(capsys, model, images, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other.keras"
    given = ["--images", images, "-o", out, "--max-drop", "0.1"]
    assert cli.main(list(map(str, ["init", model, *given]))) == 0
    before = (out / "recipe.yaml").read_text()
    save_model(small_net(), other)
    line = refused(capsys, "compress", other, *given)
    assert f"{out} holds the run of another model, {model}" in line
    assert (out / "recipe.yaml").read_text() == before
    # Asked for the same, the recipe stays as it is, with what was noted in it.
    (out / "recipe.yaml").write_text(before := before + "# mine")
    assert cli.main(list(map(str, ["init", model, *given]))) == 0
    assert (out / "recipe.yaml").read_text() == before
    # The same model, asked for something else, goes on in its folder.
    assert cli.main(list(map(str, ["init", model, *given, "--ratio", "0.5"]))) == 0
    assert (out / "recipe.before.yaml").read_text() == before


def test_a_folder_of_other_files_is_refused(capsys, model, images):
    line = refused(capsys, "compress", model, "--images", images, "-o", images)
    assert "holds other files (test, train); choose another" in line


def changed(path, change):
    """A copy of the small network with other weights."""
    net = small_net()
    weights = net.get_weights()
    change(weights)
    net.set_weights(weights)
    save_model(net, path)
    return path


def test_weights_that_are_not_numbers_are_refused(capsys, tmp_path, images):
    def spoil(weights):
        weights[0].flat[:5] = np.nan

    path = changed(tmp_path / "spoilt.keras", spoil)
    line = refused(capsys, "compress", path, "--images", images, "--max-drop", "0.1")
    assert "5 of its 448 weights are NaN or infinite" in line and "conv2d" in line
    assert not path.with_name("spoilt-compressed").exists()


def of_any_size():
    image = keras.Input((None, None, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image))
    return keras.Model(image, keras.layers.Dense(2)(x))


def of_two_images():
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([a, b]))
    return keras.Model([a, b], keras.layers.Dense(2)(x))


def with_lambda():
    image = keras.Input((16, 16, 3))
    x = keras.layers.Lambda(lambda x: 2 * x)(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(2)(x))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(2)

    def call(self, x):
        return self.head(keras.layers.Flatten()(x))


def subclassed():
    net = Subclassed()
    net(np.zeros((1, 16, 16, 3), np.float32))
    return net


def channels_first():
    image = keras.Input((3, 16, 16))
    x = keras.layers.Conv2D(4, 3, data_format="channels_first")(image)
    return keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(x)))


class Twice(keras.layers.Layer):
    """Code of the user's own, which is here but in no file."""

    def call(self, inputs):
        return 2 * inputs


def with_own_layer():
    image = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(Twice(name="mine")(image))
    return keras.Model(image, keras.layers.Dense(2)(x))


def of_two_outputs():
    image = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(image)
    ends = [keras.layers.Dense(n, name=name)(x) for n, name in ((3, "a"), (2, "b"))]
    return keras.Model(image, ends)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (with_lambda, "is a Lambda, which is code"),
        (subclassed, "Subclassed"),
        (channels_first, "takes images with channels first; expected (height, "),
        (of_any_size, "build the model for images of one size"),
        (of_two_images, "it has 2 inputs; expected one image"),
        (with_own_layer, "Twice', which cannot be read; write it with"),
        (of_two_outputs, "choose the one that counts: --model-output a"),
    ],
)
def test_a_model_that_cannot_be_taken_is_refused(capsys, tmp_path, images, make, said):
    path = tmp_path / "odd.keras"
    make().save(path)
    line = refused(capsys, "compress", path, "--images", images, "--max-drop", "0.1")
    assert said in line
    assert not path.with_name("odd-compressed").exists()


def test_code_that_is_at_hand_is_not_in_the_file(tmp_path, images):
    with pytest.raises(ValueError, match="'mine' is of the class 'Twice', which"):
        compress(with_own_layer(), str(images), output=tmp_path / "out", max_drop=0.1)
    assert not (tmp_path / "out").exists()


def test_all_that_is_wrong_is_said_at_once(capsys, tmp_path, images):
    a, b = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    x = keras.layers.Lambda(lambda x: 2 * x, name="code")(keras.layers.Add()([a, b]))
    x = keras.layers.GlobalAveragePooling2D()(Twice(name="mine")(x))
    keras.Model([a, b], keras.layers.Dense(2)(x)).save(tmp_path / "odd.keras")

    def spoil(weights):
        weights[0][:] = np.nan

    teacher = changed(tmp_path / "spoilt.keras", spoil)
    shutil.copytree(images / "train" / "cat", tmp_path / "one" / "cat")
    given = [tmp_path / "odd.keras", "--images", tmp_path / "one"]
    given += ["--teacher", teacher]
    assert cli.main(["compress", *map(str, given)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    said = ("code: ", "mine: ", "2 inputs", "NaN or infinite", "two or more class")
    for part in said:
        assert sum(part in line for line in lines) == 1, lines
    assert len(lines) == len(said)


def test_a_model_of_double_precision_is_taken(tmp_path, images):
    keras.backend.set_floatx("float64")
    try:
        double = small_net()
        double.save(tmp_path / "double.keras")
    finally:
        keras.backend.set_floatx("float32")
    request = Request(tmp_path / "double.keras", str(images), max_drop=0.1)
    assert kdprune.compression.initialize(request).is_file()
    model = kdprune.load_model(tmp_path / "double.keras")
    assert {weight.dtype.name for weight in model.weights} == {"float32"}
    for ours, theirs in zip(model.get_weights(), double.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_images_that_cannot_be_used_are_all_named_before_anything_is_done(
    capsys, tmp_path, model, images
):
    def lines(root, *more):
        given = [model, "--images", root, "-o", tmp_path / "out", "--max-drop", "0.1"]
        assert cli.main(list(map(str, ["compress", *given, *more]))) == 2
        assert not (tmp_path / "out" / "original").exists()
        return capsys.readouterr().err

    deep = np.full((16, 16), 40_000, np.uint16)
    shutil.copytree(images, tmp_path / "bad")
    Image.fromarray(deep).save(tmp_path / "bad/test/dog/0.png")
    (tmp_path / "bad/test/cat/1.png").write_text("no image")
    said = lines(tmp_path / "bad")  # Test images alone: before anything is trained.
    assert "2 files that can't be used" in said
    assert "test/dog/0.png (more than 8 bits for each channel" in said
    (tmp_path / "bad/train/dog/3.png").write_bytes(b"")
    said = lines(tmp_path / "bad")
    assert "3 files that can't be used: train/dog/3.png (empty), test/cat/1.png" in said


def test_folders_that_make_no_data_set_are_refused(capsys, tmp_path, model, images):
    def line(root):
        return refused(capsys, "compress", model, "--images", root, "--max-drop", "0.1")

    one = tmp_path / "one"
    shutil.copytree(images / "train" / "cat", one / "train" / "cat")
    assert "two or more class folders" in line(one)
    empty = tmp_path / "empty"
    shutil.copytree(images, empty)
    for path in (empty / "test" / "dog").iterdir():
        path.unlink()
    assert "Expected images of class 'dog'" in line(empty)
    (empty / "test" / "dog").rmdir()
    assert "same classes" in line(empty) and "dog missing" in line(empty)


def test_arrays_that_fit_neither_model_nor_each_other_are_refused(tmp_path, model):
    def refused_arrays(shape, labels):
        images = np.zeros((len(labels), *shape), np.uint8)
        given = {"output": tmp_path / "out", "max_drop": 0.1}
        with pytest.raises(ValueError) as error:
            compress(model, (images, labels), **given)
        assert not (tmp_path / "out" / "original").exists()
        return " ".join(str(error.value).split())

    two = np.arange(90) % 2
    assert "labels from 0" in refused_arrays((16, 16, 3), two - 1)
    assert "(8, 8, 3)" in refused_arrays((8, 8, 3), two)
    assert "(16, 16, 1)" in refused_arrays((16, 16), two)
    assert "2 outputs" in refused_arrays((16, 16, 3), np.arange(90) % 3)
    assert not (tmp_path / "out" / "recipe.yaml").exists()


def test_labels_of_other_classes_are_refused(capsys, tmp_path, model, images):
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ncow\n")
    out = tmp_path / "out"
    given = ["--images", images, "-o", out, "--max-drop", "0.1", "--labels", labels]
    line = refused(capsys, "compress", model, *given)
    assert "cow" in line and "dog" in line
    assert not out.exists()
    labels.write_text("dog\ncat\n")
    assert cli.main(list(map(str, ["init", model, *given]))) == 0
    content = yaml.safe_load((out / "recipe.yaml").read_text())
    assert content["stages"]["original"]["labels"] == str(labels)


def test_a_text_file_called_keras_is_refused(capsys, tmp_path, images):
    path = tmp_path / "text.keras"
    path.write_text("hello")
    given = ["--images", images, "--max-drop", "0.1"]
    line = refused(capsys, "compress", path, *given)
    assert "is not a complete .keras file" in line


def test_a_model_of_more_or_fewer_classes_is_refused(capsys, tmp_path, model, images):
    path = tmp_path / "ten.keras"
    save_model(build_model("resnet8", (16, 16, 3), 10), path)
    given = ["--images", images, "--max-drop", "0.1"]
    assert "10 outputs" in refused(capsys, "compress", path, *given)
    assert not (tmp_path / "ten-compressed").exists()
    shutil.copytree(images, tmp_path / "three")
    for split in ("train", "test"):
        shutil.copytree(images / split / "cat", tmp_path / "three" / split / "cow")
    given = ["--images", tmp_path / "three", "--max-drop", "0.1"]
    assert "Received: 2 outputs" in refused(capsys, "compress", model, *given)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"target_bytes": 500}, "target_bytes 500 cannot be reached"),
        ({"target_macs": 1000}, "target_macs 1,000 cannot be reached"),
        ({"target_macs": 10**9}, "the model is within 1,000,000,000 as it is"),
    ],
)
def test_a_target_that_cannot_be_met_is_told_from_a_plan(
    model, images, tmp_path, target, said
):
    request = Request(model, str(images), tmp_path / "out", max_drop=0.1, **target)
    text = write_page(request, (16, 16, 3), Counts(80, None, 26, 0.08))
    run = Run(parse_recipe(yaml.safe_load(text)), tmp_path / "out")
    with pytest.raises(ValueError, match=said) as error:
        check_target(run, request)
    assert "\n" not in str(error.value)
    check_target(run, dataclasses.replace(request, **dict.fromkeys(target)))


def test_a_model_that_knows_nothing_is_refused_before_it_is_quantized(
    capsys, model, images, tmp_path
):
    out = tmp_path / "out"
    given = ["--images", images, "-o", out, "--max-drop", "0.1", "--input-range", "0,1"]
    assert cli.main(list(map(str, ["compress", model, *given]))) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "kdprune: " in line and "right on 50.0% of the validation images" in line
    assert not (out / "int8").exists()


# --- What is in memory ---


def taken(tmp_path, *arguments, **given):
    given = {"output": tmp_path / "out"} | given
    (tmp_path / "scratch").mkdir(exist_ok=True)
    model, train, validation, test, classes = (*arguments, None, None, None)[:5]
    return memory.take(
        model, train, validation, test, classes, given, tmp_path / "scratch"
    )


def test_a_model_in_memory_is_called_by_its_weights(tmp_path):
    net = small_net()
    first, again = (taken(tmp_path, net, "shapes").request.model for _ in range(2))
    assert first == again and first.parent == tmp_path / "out"
    assert taken(tmp_path, net, "shapes").request.name == "out"
    net.layers[1].bias.assign_add(np.full(16, 1e-6, np.float32))
    assert taken(tmp_path, net, "shapes").request.model != first


def test_what_is_no_model_or_no_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="or a model of Keras 3 or tf_keras"):
        taken(tmp_path, object(), "shapes")
    with pytest.raises(ValueError, match="a model in memory expects `output`"):
        kdprune.compress(small_net(), "shapes")
    with pytest.raises(ValueError, match="`test` goes with arrays"):
        kdprune.compress("a.keras", "shapes", test=(np.zeros(3), np.zeros(3)))
    with pytest.raises(ValueError, match="train: expected a folder"):
        taken(tmp_path, "a.keras", 7)
    with pytest.raises(ValueError, match="3 images and 2 labels"):
        taken(tmp_path, "a.keras", (np.zeros((3, 8, 8, 3)), np.zeros(2)))


@pytest.mark.parametrize(
    ("pixels", "given"),
    [
        (np.uint8, None),
        (np.float32, None),
        (np.int64, None),
        (lambda x: x / 255, None),
        (lambda x: x / 127.5 - 1, (-1.0, 1.0)),
        (lambda x: np.float32(x), (0.0, 255.0)),
    ],
)
def test_images_are_kept_as_the_bytes_they_came_from(tmp_path, pixels, given):
    content = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    found = taken(
        tmp_path, "a.keras", (pixels(content), np.arange(6)), input_range=given
    )
    stored = np.load(found.files[tmp_path / "out" / "images.npz"])
    np.testing.assert_array_equal(stored["x_train"], content)
    np.testing.assert_array_equal(stored["y_train"], np.arange(6))
    assert found.request.dataset == "npz"


def test_pixels_of_no_known_range_are_refused(tmp_path):
    images = np.random.default_rng(0).normal(size=(6, 4, 4, 3))
    with pytest.raises(ValueError, match="give input_range"):
        taken(tmp_path, "a.keras", (images, np.arange(6)))
    with pytest.raises(ValueError, match="train: expected pixels of"):
        taken(tmp_path, "a.keras", (images * np.nan, np.arange(6)))


def test_a_tf_data_set_is_read_to_its_end(tmp_path):
    import tensorflow as tf

    images = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), np.uint8)
    source = tf.data.Dataset.from_tensor_slices((images, np.arange(7)))
    for given in (source, source.batch(3)):
        found = taken(tmp_path, "a.keras", given)
        stored = np.load(found.files[tmp_path / "out" / "images.npz"])
        np.testing.assert_array_equal(stored["x_train"], images)
        np.testing.assert_array_equal(stored["y_train"], np.arange(7))
    with pytest.raises(ValueError, match="one that repeats for ever"):
        taken(tmp_path, "a.keras", source.repeat())

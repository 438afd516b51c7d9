"""Plants names of code in model files and opens them by every command; a program.

    plant_code.py FOLDER FIRST COUNT [commands]

Prints `{outcome: files}`, and ends with status 1 if a file had anything imported,
called or started that is not ours.
"""

import contextlib
import copy
import io
import json
import random
import sys
import zipfile
from pathlib import Path

FOLDER = Path(sys.argv[1])
CANARY = "canary_module"
TRACE: list[str] = []
_CALLED = ("os.system", "os.exec", "os.posix_spawn", "pickle.find_class")


def watch(event, _):
    if event in _CALLED:
        TRACE.append(event)


def prepare():
    """Four models in each Keras, and what a file may name: it tells when it runs."""
    import keras as keras3
    import tf_keras

    told = "__import__('sys').modules['__main__'].TRACE.append"
    (FOLDER / f"{CANARY}.py").write_text(
        f"{told}('imported')\n\ndef act(*_, **__):\n    {told}('called')\n"
    )
    sys.path.insert(0, str(FOLDER))
    files = []
    for name, keras in (("2", tf_keras), ("3", keras3)):
        layers = keras.layers

        class Evil(keras.layers.Layer):
            def __init__(self, *arguments, **named):
                TRACE.append("a registered class is made")
                super().__init__()

            def call(self, inputs):
                return inputs

        def act(*_, **__):
            TRACE.append("a registered function is called")

        register = (
            keras.utils.register_keras_serializable
            if name == "2"
            else keras.saving.register_keras_serializable
        )
        register("theirs", "Evil")(Evil)
        register("theirs", "act")(act)
        block = [
            layers.Conv2D(
                4,
                3,
                activation="relu",
                kernel_initializer="he_normal",
                kernel_regularizer="l2",
                bias_constraint="non_neg",
                name="conv",
            ),
            layers.BatchNormalization(name="bn"),
            layers.Activation("relu", name="act"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(3, activation="softmax", name="out"),
        ]
        sequential = keras.Sequential([keras.Input((12, 12, 3)), *block])
        sequential.compile("sgd", "sparse_categorical_crossentropy")
        images = keras.Input((12, 12, 3), name="images")
        inner_in = keras.Input((12, 12, 3))
        inner = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(inner_in)
        inner = keras.Model(inner_in, layers.ReLU(name="relu")(inner), name="inner")
        x = layers.Add(name="add")([images, inner(images)])
        x = layers.Flatten(name="flat")(x)
        functional = keras.Model(images, layers.Dense(3, name="logits")(x))
        for kind, model in (("sequential", sequential), ("functional", functional)):
            for suffix in ("keras", "h5"):
                path = FOLDER / f"{kind}{name}.{suffix}"
                model.save(path)
                files.append(path)
    return files


def payloads(rng):
    """A name of code in one of the forms that any Keras reads."""
    module = rng.choice([CANARY, CANARY, "os", "builtins", "keras.src.saving", None])
    name = rng.choice(["act", "system", "eval", "Evil", "Lambda", "TFOpLambda"])
    registered = rng.choice([None, name, "theirs>Evil", "theirs>act", "kdprune>Dirac"])
    code = "4wEAAAAAAAAAAAAAAAAAAAABAAAAQwAAAHMEAAAAZAAAAA=="
    return rng.choice(
        [
            {"module": module, "class_name": name, "config": {"name": "x"},
             "registered_name": registered},
            {"module": module, "class_name": "function", "config": name,
             "registered_name": registered},
            {"class_name": "__lambda__", "config": {"value": code}},
            {"class_name": "Lambda", "module": "keras.layers", "registered_name": None,
             "config": {"name": "x", "function": {"class_name": "__lambda__",
                        "config": {"code": code, "defaults": None, "closure": None}}}},
            {"class_name": "TFOpLambda",
             "config": {"name": "x", "function": f"{CANARY}.{name}"}},
            {"class_name": "theirs>Evil", "config": {}},
            {"class_name": name, "config": {"file_path": str(FOLDER / "x.keras")}},
            {"class_name": "__typespec__", "spec_name": f"{CANARY}.{name}",
             "module": module, "config": [], "registered_name": registered},
            f"{CANARY}.{name}",
            f"{CANARY}>{name}",
            "theirs>act",
            "theirs>Evil",
            name,
        ]
    )  # fmt: skip


def plant(config, rng):
    """Puts one where a serialized object stands, or around or inside of it."""
    config, places = copy.deepcopy(config), []

    def walk(item):
        if isinstance(item, dict):
            places.extend((item, key) for key in item)
            for key in ("build_config", "compile_config", "module", "dtype"):
                if "class_name" in item:
                    places.append((item, key))
        elif isinstance(item, list):
            places.extend((item, index) for index in range(len(item)))
        for one in item.values() if isinstance(item, dict) else item:
            if isinstance(one, dict | list):
                walk(one)

    walk(config)
    ends = ("activation", "izer", "constraint", "layer", "dtype", "config", "layers",
            "class_name", "module", "registered_name", "cell", "function")  # fmt: skip
    likely = [p for p in places if isinstance(p[1], str) and p[1].endswith(ends)]
    for _ in range(rng.choice([1, 1, 2])):
        place, key = rng.choice(likely if likely and rng.random() < 0.8 else places)
        given = payloads(rng)
        if key in ("class_name", "module", "registered_name", "spec_name"):
            given = rng.choice([CANARY, "os", "theirs>Evil", "theirs", "Lambda", given])
        elif rng.random() < 0.2 and isinstance(given, dict):
            given = {**given, "config": place.get(key) if type(place) is dict else {}}
        place[key] = given
    return config


def rewrite(source, target, rng):
    """A copy of a model file with code planted in its configuration or metadata."""
    if source.suffix == ".keras":
        with zipfile.ZipFile(source) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        which = "metadata.json" if rng.random() < 0.05 else "config.json"
        changed = plant(json.loads(members[which]), rng)
        members[which] = json.dumps(changed).encode()
        with zipfile.ZipFile(target, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return
    import h5py

    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        which = "model_config"
        if "training_config" in file.attrs and rng.random() < 0.1:
            which = "training_config"
        changed = plant(json.loads(file.attrs[which]), rng)
        file.attrs[which] = json.dumps(changed)


def open_by_all(path, by_commands):
    """Whether a file is accepted; refused, it is so in one line each time."""
    from kdprune import cli
    from kdprune.models.io import find_problems, load_model

    accepted = True
    for reader in (find_problems, load_model):
        try:
            reader(path)
        except ValueError as error:
            assert "\n" not in str(error), f"{path.name}: {error}"
            accepted = False
    if by_commands:
        recipe = FOLDER / "recipe.yaml"
        recipe.write_text(
            "name: planted\n"
            "data: {dataset: shapes, train_images: 60, test_images: 20}\n"
            f"stages:\n  given: {{kind: load, file: {json.dumps(str(path))}}}\n"
            "  int8: {kind: quantize, from: given, method: ptq}\n"
        )
        for command in (
            ["run", str(recipe), "--dry-run", "--output", str(FOLDER / "run")],
            ["doctor", str(path)],
            ["evaluate", str(path), "--dataset", "shapes", "--no-latency"],
            ["compress", str(path), "--images", "shapes", "--dry-run",
             "-o", str(FOLDER / "made")],
        ):  # fmt: skip
            with contextlib.redirect_stderr(io.StringIO()) as said:
                with contextlib.redirect_stdout(io.StringIO()):
                    try:
                        cli.main(command)
                    except SystemExit:
                        pass
            assert "Traceback" not in said.getvalue(), said.getvalue()[-2000:]
    return accepted


def check_watched(path):
    """Keras itself, given such a file, does what is watched for."""
    import tf_keras

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    for named in ({"module": CANARY}, {"registered_name": "theirs>Evil"}):
        layer = copy.deepcopy(config["config"]["layers"][1])
        layer.update({"class_name": "Evil", **named})
        with contextlib.suppress(Exception):
            tf_keras.saving.deserialize_keras_object(layer)
        assert TRACE, f"{named} went unseen"
        TRACE.clear()
    sys.modules.pop(CANARY, None)


def main():
    first, count = int(sys.argv[2]), int(sys.argv[3])
    files = prepare()
    sys.addaudithook(watch)
    check_watched(next(path for path in files if path.name == "sequential2.keras"))
    found = {"accepted": 0, "refused": 0}
    for number in range(first, first + count):
        rng = random.Random(number)
        source = files[number % len(files)]
        target = FOLDER / f"planted{source.suffix}"
        rewrite(source, target, rng)
        accepted = open_by_all(target, by_commands=len(sys.argv) > 4)
        found["accepted" if accepted else "refused"] += 1
        assert not TRACE, f"file {number} of {source.name}: {TRACE}"
        assert CANARY not in sys.modules, number
    print(json.dumps(found))


if __name__ == "__main__":
    main()

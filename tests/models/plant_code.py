"""Plants names of code in model files and opens them by every command; a program.

    plant_code.py FOLDER FIRST COUNT [commands]

Prints `{outcome: files}`, and ends with status 1 if a file had anything imported,
called or started that is not ours, or read or written outside of the folder. It runs
where `watching/sitecustomize.py` watches, as `test_planted.py` starts it.
"""

import contextlib
import copy
import ctypes
import io
import json
import os
import random
import sys
import zipfile
from pathlib import Path

from sitecustomize import note, noted

FOLDER = Path(sys.argv[1])
CANARY = "canary_module"
OUTSIDE = FOLDER.parent
# What a file may name that nobody has given: nothing may look into it.
BAIT = OUTSIDE / "bait" / "secret.txt"
# Of these, one in so many is opened by `convert_tflite`, which takes its time.
_CONVERTED = 4


class Looks:
    """Tells whether a folder was looked into, by whatever library (Linux's inotify)."""

    def __init__(self, folder):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.handle = self.libc.inotify_init1(os.O_NONBLOCK)
        # Read, written, opened, made, moved or removed.
        events = 0x1 | 0x2 | 0x20 | 0x100 | 0x80 | 0x200
        watched = self.libc.inotify_add_watch(self.handle, os.fsencode(folder), events)
        assert self.handle >= 0 and watched >= 0, os.strerror(ctypes.get_errno())

    def seen(self):
        """Whether it was since this was asked last."""
        try:
            return bool(os.read(self.handle, 1 << 16))
        except BlockingIOError:
            return False


def prepare():
    """Models of each Keras, and what a file may name: it tells when it runs."""
    import keras as keras3
    import tensorflow_model_optimization as tfmot
    import tf_keras

    told = "__import__('sitecustomize').note"
    (FOLDER / f"{CANARY}.py").write_text(
        f"{told}('imported')\n\ndef act(*_, **__):\n    {told}('called')\n"
    )
    sys.path.insert(0, str(FOLDER))
    files = []
    for name, keras in (("2", tf_keras), ("3", keras3)):
        layers = keras.layers

        class Evil(keras.layers.Layer):
            def __init__(self, *arguments, **named):
                note("a registered class is made")
                super().__init__()

            def call(self, inputs):
                return inputs

        def act(*_, **__):
            note("a registered function is called")

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
        models = {"sequential": sequential, "functional": functional}
        models["wrapped"] = keras.Sequential(
            [
                keras.Input((12, 12, 3)),
                layers.TimeDistributed(layers.Dense(4, activation="relu"), name="each"),
                layers.Reshape((12, 48), name="rows"),
                layers.Bidirectional(layers.LSTM(2), name="both"),
                layers.Dense(3, name="logits"),
            ]
        )
        if name == "2":
            plain = keras.Sequential(
                [
                    keras.Input((12, 12, 3)),
                    layers.Conv2D(4, 3, activation="relu", name="conv"),
                    layers.Flatten(name="flat"),
                    layers.Dense(3, name="logits"),
                ]
            )
            api = tfmot.clustering.keras
            start = api.CentroidInitialization.LINEAR
            models["pruned"] = tfmot.sparsity.keras.prune_low_magnitude(plain)
            models["aware"] = tfmot.quantization.keras.quantize_model(plain)
            models["clustered"] = api.cluster_weights(plain, 2, start)
        for kind, model in models.items():
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
            {"class_name": "StringLookup", "config": {"vocabulary": str(BAIT)}},
            {"class_name": "TextVectorization", "config": {"vocabulary": str(BAIT)}},
            {"class_name": "TFSMLayer", "config": {"filepath": str(BAIT.parent),
                                                   "call_endpoint": "serve"}},
            {"class_name": name, "config": {"file_path": str(BAIT), "path": str(BAIT)}},
            str(BAIT),
            BAIT.as_uri(),
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
        if rng.random() < 0.05:
            way = rng.choice(["../", "../../bait/", f"{BAIT.parent}/", "assets/../../"])
            members[f"{way}escaped.txt"] = b"written where nobody asked for it"
        with zipfile.ZipFile(target, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return
    import h5py

    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        if rng.random() < 0.05:
            file["outside"] = h5py.ExternalLink(str(BAIT), "/")
        which = "model_config"
        if "training_config" in file.attrs and rng.random() < 0.1:
            which = "training_config"
        changed = plant(json.loads(file.attrs[which]), rng)
        file.attrs[which] = json.dumps(changed)


def left_outside():
    """What lies beside the folder; looked at unseen."""
    found = set(os.listdir(OUTSIDE))
    noted()
    return found


def open_by_all(path, by_commands, converted):
    """Whether a file is accepted; refused, it is so in one line each time."""
    from kdprune import cli
    from kdprune.models.io import find_problems, load_model
    from kdprune.tflite import convert_tflite

    accepted = True
    for reader in (find_problems, load_model, convert_tflite):
        if reader is convert_tflite and not converted:
            continue
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


def check_watched(path, looks):
    """Keras and Python themselves, given such a file, do what is watched for."""
    import tf_keras

    assert not looks.seen() and not noted()
    tf_keras.layers.StringLookup(vocabulary=str(BAIT))
    assert looks.seen(), "a file that is read by TensorFlow goes unseen"
    noted()
    for act in (lambda: BAIT.read_text(), lambda: BAIT.write_text("secret"),
                lambda: list(BAIT.parent.iterdir()),
                lambda: (BAIT.parent / "new").mkdir()):  # fmt: skip
        act()
        assert looks.seen() and len(noted()) == 1, "a file goes unseen"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    for named in ({"module": CANARY}, {"registered_name": "theirs>Evil"}):
        layer = copy.deepcopy(config["config"]["layers"][1])
        layer.update({"class_name": "Evil", **named})
        with contextlib.suppress(Exception):
            tf_keras.saving.deserialize_keras_object(layer)
        assert noted(), f"{named} went unseen"
    sys.modules.pop(CANARY, None)


def main():
    first, count = int(sys.argv[2]), int(sys.argv[3])
    BAIT.parent.mkdir()
    BAIT.write_text("one\ntwo\n")
    files = prepare()
    looks = Looks(BAIT.parent)
    noted()
    check_watched(
        next(path for path in files if path.name == "sequential2.keras"), looks
    )
    outside = left_outside()
    found = {"accepted": 0, "refused": 0}
    for number in range(first, first + count):
        rng = random.Random(number)
        source = files[number % len(files)]
        target = FOLDER / f"planted{source.suffix}"
        rewrite(source, target, rng)
        accepted = open_by_all(target, len(sys.argv) > 4, number % _CONVERTED == 0)
        found["accepted" if accepted else "refused"] += 1
        told = noted() + ["it looks into the bait"] * looks.seen()
        assert not told, f"file {number} of {source.name}: {told}"
        assert CANARY not in sys.modules, number
        left = left_outside() - outside
        assert not left, f"file {number} of {source.name} leaves {left}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()

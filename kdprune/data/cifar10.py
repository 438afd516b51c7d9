"""CIFAR-10: found where it lies, or downloaded and checked.

Reference: Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import hashlib
import io
import math
import os
import pickle
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from kdprune import _io
from kdprune._log import logger, progress
from kdprune.data import folder
from kdprune.data.dataset import Source, Split

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
IMAGES_PER_BATCH = 10_000
TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_BATCH = "test_batch"

_BATCHES = "cifar-10-batches-py"
# The names under which the official page, tf_keras and Keras 3 store the archive,
# and the latter two the batches.
_ARCHIVES = (
    "cifar-10-python.tar.gz",
    f"{_BATCHES}.tar.gz",
    f"{_BATCHES}-target_archive",
)
_FOLDERS = ("", _BATCHES, f"{_BATCHES}-target/{_BATCHES}")
_PLACES = (
    f"give --data-dir (data_dir) or set KDPRUNE_DATA_DIR to the folder {_BATCHES}, "
    "to the folder that holds it, to cifar-10-python.tar.gz, or to a folder of "
    "images train/<class>/*.png and test/<class>/*.png; "
    f"or put cifar-10-python.tar.gz from {URL} into the Keras cache, "
)

# Of a batch, in any of pickle's forms.
_MOST_BYTES = 2**28


def load(*, data_dir: str | os.PathLike | None = None, seed: int = 0) -> Source:
    """Reads CIFAR-10: 50,000 training and 10,000 test images, 32x32 RGB.

    It is looked for in `data_dir`, else in the environment's `KDPRUNE_DATA_DIR`,
    else in the Keras cache, and else downloaded there (170 MB). A place that is
    named must hold it: a wrong one is an error, never a silent download.

    Args:
        data_dir: The folder `cifar-10-batches-py`, the folder that holds it, the
            official `cifar-10-python.tar.gz`, or a folder of images
            `train/<class>/*` and `test/<class>/*`.
        seed: Not used: nothing is drawn here.

    Returns:
        The source; the test batch is opened when it is asked for.

    Raises:
        ValueError: If a file is damaged or not what it should be.
        FileNotFoundError: If the data is not there.
        OSError: If it has to be downloaded and cannot be.
    """
    place = _locate(data_dir)
    if place.is_dir() and not (place / TRAIN_BATCHES[0]).exists():
        return _image_folder(place)
    return Source(
        origin="CIFAR-10 (python batches)",
        classes=CLASSES,
        train=_read_batches(place, TRAIN_BATCHES),
        read_test=lambda: _read_batches(place, (TEST_BATCH,)),
        test_size=IMAGES_PER_BATCH,
    )


def _locate(data_dir: str | os.PathLike | None) -> Path:
    """Returns the folder of batches, the archive or the folder of images."""
    given = data_dir or os.environ.get("KDPRUNE_DATA_DIR")
    if given:
        given = Path(given).expanduser()
        place = _find(given)
        if place is None and (given / "train").is_dir():
            return given
        if place is None:
            raise FileNotFoundError(
                f"Expected CIFAR-10. Received: {given}, which "
                + ("does not hold it" if given.exists() else "does not exist")
                + f". Please {_PLACES}{_cache()}."
            )
        return place
    return _find(_cache()) or _download(_cache() / f"{_BATCHES}.tar.gz")


def _find(place: Path) -> Path | None:
    """Returns the folder of batches or the archive that `place` is or holds."""
    if place.is_file():
        return place
    for name in _FOLDERS:
        if any((place / name / b).exists() for b in (*TRAIN_BATCHES, TEST_BATCH)):
            return _complete(place / name)
    for name in _ARCHIVES:
        if (place / name).is_file():
            return place / name
    return None


def _complete(batches: Path) -> Path:
    for name in (*TRAIN_BATCHES, TEST_BATCH):
        if not (batches / name).is_file():
            raise FileNotFoundError(
                f"Expected the six batches of CIFAR-10 in {batches}. "
                f"Received: no {name}. Unpack the archive from {URL} again."
            )
    return batches


def _cache() -> Path:
    """The folder where Keras keeps datasets."""
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    return Path(home).expanduser() / "datasets"


def _download(target: Path) -> Path:
    """Downloads the archive beside `target`, checks it and moves it into place."""
    logger.info("downloading CIFAR-10 (170 MB) from %s to %s", URL, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            _io.writing(target) as partial,
            urllib.request.urlopen(URL, timeout=30) as response,
        ):
            with partial.open("wb") as file:
                total = int(response.headers.get("Content-Length") or 0) >> 20
                blocks = iter(lambda: response.read(1 << 20), b"")
                for block in progress(blocks, "downloading, MiB", total or None):
                    file.write(block)
            if (received := _md5(partial)) != ARCHIVE_MD5:
                raise OSError(f"a file with the wrong MD5 {received}")
    except OSError as error:
        raise OSError(
            f"Expected CIFAR-10 on this machine or at {URL}. Received: {error}. "
            f"Please {_PLACES}{_cache()}."
        ) from error
    return target


def _md5(archive: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with archive.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_batches(place: Path, names: tuple[str, ...]) -> Split:
    """Reads batches from a folder or an archive; the archive is never unpacked."""
    if place.is_dir():
        batches = [_parse(_content(place / name), place / name) for name in names]
    else:
        if (received := _md5(place)) != ARCHIVE_MD5:
            raise ValueError(
                f"Expected the official {_ARCHIVES[0]}, MD5 {ARCHIVE_MD5}. "
                f"Received: {place}, MD5 {received}. Download it again from {URL}."
            )
        members = {}
        with tarfile.open(place, "r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix(f"{_BATCHES}/")
                if member.isfile() and name in names:
                    content = archive.extractfile(member)
                    if content is not None:  # A file, as was asked.
                        members[name] = _parse(content.read(), place / member.name)
                if len(members) == len(names):
                    break
        batches = [members[name] for name in names]
    images, labels = zip(*batches, strict=True)
    return Split(np.concatenate(images), np.concatenate(labels))


def _content(batch: Path) -> bytes:
    if (size := batch.stat().st_size) > _MOST_BYTES:
        raise ValueError(
            f"Expected a batch of CIFAR-10, of some 31 MB. Received: {batch}, of "
            f"{size:,} bytes. Unpack the archive from {URL} again."
        )
    return batch.read_bytes()


def _parse(content: bytes, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Turns one pickled batch into images `(n, 32, 32, 3)` and labels `(n,)`."""
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # Damaged pickles raise errors of many types.
        raise ValueError(
            f"Expected a batch of CIFAR-10. Received: {file}, which cannot be read "
            f"({_io.first_line(error)}). Unpack the archive from {URL} again."
        ) from error
    entries = {}
    if isinstance(batch, dict):
        known = {b"data": "data", b"labels": "labels"}
        entries = {
            known.get(key, key): value
            for key, value in batch.items()
            if type(key) in (bytes, str)
        }
    data, labels = entries.get("data"), entries.get("labels")
    expected = (IMAGES_PER_BATCH, 3072)
    if not isinstance(data, _RawArray) or not data.holds(expected):
        received = type(data).__name__
        if isinstance(data, _RawArray):
            size = len(data.raw) if isinstance(data.raw, bytes | bytearray) else 0
            received = f"{data.shape!r:.60} and {size} bytes"
        raise ValueError(
            f"Expected an array of shape {expected} as data in {file}. "
            f"Received: {received}."
        )
    if not isinstance(labels, list) or len(labels) != IMAGES_PER_BATCH:
        found = len(labels) if isinstance(labels, list) else type(labels).__name__
        raise ValueError(
            f"Expected a list of {IMAGES_PER_BATCH} labels in {file}. "
            f"Received: {found}."
        )
    wrong = [
        index
        for index, label in enumerate(labels)
        if type(label) is not int or not 0 <= label < len(CLASSES)
    ]
    if wrong:
        raise ValueError(
            f"Expected labels 0 to 9 in {file}. Received: {len(wrong)} others, the "
            f"first {labels[wrong[0]]!r:.60} at {wrong[0]}."
        )
    images = data.pixels().reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, np.int64)


class _RawArray:
    """What a pickled array of bytes holds, kept away from NumPy's own unpickling."""

    # Of one that a file makes without any; they may be of any type.
    raw: Any = b""
    shape: Any = (0,)
    order: Any = "C"

    def __init__(self, raw=b"", shape=(0,), order="C"):
        self.raw, self.shape, self.order = raw, shape, order

    def __setstate__(self, state):
        _, shape, _, is_fortran, raw = state
        self.raw, self.shape, self.order = raw, shape, "F" if is_fortran else "C"

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether it is of this shape, and as many bytes."""
        return (
            self.shape == shape
            and isinstance(self.raw, bytes | bytearray)
            and len(self.raw) == math.prod(shape)
            and self.order in ("C", "F")
        )

    def pixels(self) -> np.ndarray:
        return np.frombuffer(self.raw, np.uint8).reshape(self.shape, order=self.order)


class _UInt8:
    """Stands in for the dtype; its pickled state (byte order) says nothing more."""

    def __init__(self, code, align=False, copy=False):
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of {code!r} instead of 'u1'")

    def __setstate__(self, state):
        pass


def _reconstruct(subtype, shape, code):
    return _RawArray()


def _frombuffer(raw, dtype, shape, order):
    if not isinstance(raw, bytes | bytearray):  # Of a number, bytes() makes so many.
        raise pickle.UnpicklingError(f"an array of {type(raw).__name__}")
    return _RawArray(bytes(raw), shape, order)


def _encode(text, encoding):
    return text.encode("latin1")


# Python's own in Python, of which the types are not told.
_PythonUnpickler: Any = getattr(pickle, "_Unpickler")  # noqa: B009


class _BatchUnpickler(_PythonUnpickler):
    """Rebuilds bytes and builtin containers; nothing the file names is called.

    The unpickler in C makes room for as many entries as a file of a few bytes says
    that it will need.

    The names that a pickled array is made with lead to stand-ins; any other name
    is refused. Reference:
    https://docs.python.org/3/library/pickle.html#restricting-globals.
    """

    STAND_INS = {
        ("numpy", "ndarray"): _RawArray,
        ("numpy", "dtype"): _UInt8,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.numeric", "_frombuffer"): _frombuffer,
        ("numpy._core.numeric", "_frombuffer"): _frombuffer,
        # How Python 3 writes bytes for Python 2 to read.
        ("_codecs", "encode"): _encode,
    }

    dispatch = dict(_PythonUnpickler.dispatch)

    def _load_build(self):
        if not isinstance(self.stack[-2], _RawArray | _UInt8):
            raise pickle.UnpicklingError("it gives a state to what has none")
        self.load_build()

    dispatch[pickle.BUILD[0]] = _load_build

    def find_class(self, module, name):
        if (module, name) not in self.STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, not allowed")
        return self.STAND_INS[module, name]


def _image_folder(place: Path) -> Source:
    """Reads CIFAR-10 that was saved as one image file for each image."""
    classes = folder.class_names(place / "train")
    if classes != CLASSES or "test" not in folder.find_parts(place):
        raise ValueError(
            f"Expected train/ and test/ with the classes {', '.join(CLASSES)} in "
            f"{place}. Received: {', '.join(classes)}. "
            "Load other images as the dataset 'folder'."
        )
    source = folder.load(path=place)
    if source.train.images.shape[1:] != (32, 32, 3):
        raise ValueError(
            f"Expected images of 32x32 in {place}. "
            f"Received: {source.train.images.shape[1:3]}."
        )
    sizes = (len(source.train) + len(source.validation or ()), source.test_size)
    if sizes != (50_000, 10_000):
        logger.warning(
            "%s holds %s training and %s test images instead of 50,000 and 10,000: "
            "its scores are not those of CIFAR-10.",
            place,
            *(f"{size:,}" for size in sizes),
        )
    return Source(
        origin="CIFAR-10 (image files)",
        classes=CLASSES,
        train=source.train,
        read_test=source.read_test,
        test_size=source.test_size,
        validation=source.validation,
        unlabelled=source.unlabelled,
    )

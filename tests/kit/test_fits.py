"""Whether a file fits a board: what it needs, what there is, and the exit status."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune import cli
from kdprune.kit import check_fit, find_boards, find_needs, fits, load_boards
from kdprune.kit.boards import Board
from kdprune.tflite import convert_tflite

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESNET8 = ROOT / "results" / "cifar10" / "model_int8.tflite"


def board(name="test board", **changes):
    known = {
        "core": "Cortex-M4F",
        "clock_mhz": 64,
        "flash": 2**20,
        "ram": 2**18,
        "block": 2**18,
        "external_ram": 0,
        "kernels": "cmsis-nn",
        "source": "-",
        "reserved_flash": 0,
        "reserved_ram": 0,
    }
    return Board(name, **{**known, **changes})


@pytest.fixture(scope="module")
def resnet8():
    return find_needs(RESNET8)


@pytest.fixture(scope="module")
def reversing():
    """A file with an operator that TFLite Micro lacks."""

    @tf.function(autograph=False)
    def reverse(image):
        return {"scores": tf.reverse(image, [1])}

    image = tf.TensorSpec((1, 4, 4, 3), tf.float32, name="image")
    function = reverse.get_concrete_function(image)
    return tf.lite.TFLiteConverter.from_concrete_functions([function]).convert()


def without_micro(monkeypatch):
    monkeypatch.setattr(fits, "measure_arena", lambda data: None)


def test_every_board_has_figures_and_a_page_that_says_so():
    boards = load_boards()
    assert len(boards) >= 15
    for found in boards.values():
        assert found.source.startswith("https://") and found.core
        assert 0 < found.block <= found.ram
        assert 2**17 <= found.reserved_flash < found.flash
        assert 2**15 <= found.reserved_ram < found.ram
    assert sum(not found.micro for found in boards.values()) >= 2


def test_the_arena_is_that_of_tflite_micro(resnet8):
    pytest.importorskip("tflite_micro")
    assert resnet8.measured and resnet8.missing == ()
    assert resnet8.model == RESNET8.stat().st_size
    # 32 x 32 x 16 three times, and the interpreter's tables.
    assert resnet8.peak == 49_152 and 55_000 < resnet8.arena < 57_000


def test_without_tflite_micro_it_is_planned_and_not_less(resnet8, monkeypatch):
    pytest.importorskip("tflite_micro")
    without_micro(monkeypatch)
    planned = find_needs(RESNET8)
    assert not planned.measured
    assert resnet8.arena <= planned.arena < 1.3 * resnet8.arena
    assert not check_fit(planned, [board()])[0].measured


def test_a_plan_is_not_less_than_the_arena_of_a_depthwise_network(monkeypatch):
    pytest.importorskip("tflite_micro")
    layers = keras.layers
    model = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(8, 3)])
    for width in (16, 24, 32):
        for layer in (
            layers.DepthwiseConv2D(3, padding="same"),
            layers.Conv2D(width, 1),
        ):
            model.add(layer)
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(4))
    images = np.random.default_rng(0).random((4, 16, 16, 3), np.float32)
    content = convert_tflite(model, "int8", images)
    measured = find_needs(content)
    without_micro(monkeypatch)
    planned = find_needs(content)
    assert measured.arena <= planned.arena < 1.5 * measured.arena


def test_the_kernels_of_a_board_add_their_buffers(resnet8):
    # CMSIS-NN: two patches of 3 x 3 x 64 in 16 bits.
    assert resnet8.scratch["cmsis-nn"] == 2 * 9 * 64 * 2
    plain, arm, esp = (
        check_fit(resnet8, [board(kernels=kernels)])[0].ram
        for kernels in ("reference", "cmsis-nn", "esp-nn")
    )
    assert arm == plain + 2304 and esp > arm + 30_000


def test_what_is_too_large_says_by_how_much(resnet8):
    (small,) = check_fit(resnet8, [board(flash=90_000)])
    assert not small.fits and small.place == "ram"
    assert small.reasons == (f"{resnet8.model:,} bytes of flash of 90,000",)
    (tight,) = check_fit(resnet8, [board(ram=50_000, block=50_000)])
    assert not tight.fits and tight.place is None
    assert "of 50,000 in one piece" in tight.reasons[0]
    just = resnet8.arena + resnet8.scratch["cmsis-nn"]
    assert check_fit(resnet8, [board(ram=just, block=just)])[0].fits
    assert not check_fit(resnet8, [board(ram=just - 1, block=just - 1)])[0].fits
    assert not check_fit(resnet8, [board(ram=just, block=just, reserved_ram=1)])[0].fits


def test_an_arena_needs_one_piece_or_goes_beside_the_chip(resnet8):
    (found,) = check_fit(resnet8, [board(block=40_000)])
    assert not found.fits
    (found,) = check_fit(resnet8, [board(block=40_000, external_ram=2**20)])
    assert found.fits and found.place == "external_ram"
    assert "slower" in found.reasons[0]


def test_an_operator_that_tflite_micro_lacks_is_named(reversing):
    needs = find_needs(reversing)
    assert needs.missing == ("REVERSE_V2 (float32)",) and not needs.measured
    micro, phone = check_fit(needs, [board(), board(kernels="litert")])
    assert not micro.fits and "no kernel for REVERSE_V2" in micro.reasons[0]
    assert phone.fits and phone.reasons == ()


def test_what_tflite_micro_refuses_does_not_fit(monkeypatch):
    def refuse(data):
        raise ValueError("TFLite Micro does not run this model: no room")

    monkeypatch.setattr(fits, "measure_arena", refuse)
    (found,) = check_fit(RESNET8, [board()])
    assert not found.fits and "no room" in found.reasons[0]


def test_mlperfs_models_fit_the_board_they_are_measured_on(mlperf_dir):
    boards = load_boards()
    reference = [boards["NUCLEO-L4R5ZI"], boards["Raspberry Pi Pico"]]
    small = check_fit(mlperf_dir / "pretrainedResnet_quant.tflite", reference)
    assert [fit.fits for fit in small] == [True, True]
    large = check_fit(mlperf_dir / "pretrainedResnet_large_float.tflite", reference)
    assert [fit.fits for fit in large] == [True, False]


# --- Boards by name ---


def test_a_part_of_a_name_in_any_case_is_enough():
    boards = load_boards()
    found = find_boards(["NANO 33", "raspberry-pi-pico", "h743"], boards)
    assert [one.name for one in found] == [
        "Arduino Nano 33 BLE Sense",
        "Raspberry Pi Pico",
        "NUCLEO-H743ZI2",
    ]
    with pytest.raises(ValueError, match="in several names.*Raspberry Pi Pico 2"):
        find_boards(["pico"], boards)
    with pytest.raises(ValueError, match="not a known board.*expected one of: Arduino"):
        find_boards(["commodore"], boards)


def write(tmp_path, text):
    path = tmp_path / "ours.yaml"
    path.write_text(text)
    return path


OURS = """our board:
  core: Cortex-M33
  clock_mhz: 160
  flash: 1 MiB
  ram: 64 KiB
  kernels: cmsis-nn
  source: https://example.org
  reserved_flash: 300 KiB
"""


def test_boards_of_ones_own_stand_beside_the_others(tmp_path):
    boards = load_boards(write(tmp_path, OURS))
    ours = boards["our board"]
    assert next(iter(boards)) == "our board" and len(boards) == len(load_boards()) + 1
    assert (ours.flash, ours.ram, ours.block) == (2**20, 2**16, 2**16)
    assert (ours.reserved_flash, ours.reserved_ram) == (300 * 1024, 32 * 1024)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1 MiB", "1 MB", "our board.flash: .*such as 256 KiB.*Received: '1 MB'"),
        ("cmsis-nn", "magic", "our board.kernels: .*Received: 'magic'"),
        ("clock_mhz: 160", "clock: 160", "our board.clock"),
        ("our board:", "- our board:", "not YAML|boards by name"),
    ],
)
def test_a_wrong_file_of_boards_names_the_key(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_boards(write(tmp_path, OURS.replace(old, new)))
    assert "\n" not in str(caught.value)


# --- The command ---


def run(*arguments):
    return cli.main(["fits", *map(str, arguments)])


def test_the_exit_status_says_whether_all_fit(capsys, tmp_path):
    ours = write(tmp_path, OURS)
    assert run(RESNET8, "--boards", ours, "--board", "nano 33") == 0
    assert "Arduino Nano 33 BLE Sense  yes" in capsys.readouterr().out
    both = ("--board", "nano 33", "--board", "our board")
    out = tmp_path / "fits.json"
    assert run(RESNET8, "--boards", ours, *both, "--json", out) == 1
    assert "our board                  NO" in capsys.readouterr().out
    (entry,) = json.loads(out.read_text())["files"]
    assert [row["fits"] for row in entry["fits"]] == [True, False]
    assert entry["bytes"] == RESNET8.stat().st_size


def test_without_a_board_one_that_fits_is_enough(capsys, tmp_path, reversing):
    assert run(RESNET8) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in load_boards())
    path = tmp_path / "reversing.tflite"
    path.write_bytes(reversing)
    assert run(path) == 0  # A phone runs it.
    assert "no kernel for REVERSE_V2 (float32)" in capsys.readouterr().out


def test_a_wrong_call_is_status_2(capsys, tmp_path):
    assert run(tmp_path / "none.tflite") == 2
    assert "no model file" in capsys.readouterr().err
    assert run(RESNET8, "--board", "commodore") == 2


@pytest.mark.slow
def test_a_process_ends_with_this_status(tmp_path):
    command = [sys.executable, "-m", "kdprune", "fits", RESNET8]
    command += ["--boards", write(tmp_path, OURS), "--board", "our board"]
    assert subprocess.run(command, cwd=ROOT).returncode == 1

"""The bench of quantizers: no file of one stands for another's."""

import importlib.util
import itertools
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_quantizers.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_quantizers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_quantizer_and_draw_has_a_file_of_its_own(bench, tmp_path):
    names = [*bench.OURS, bench.THEIRS]
    made = {
        (draw, name): f"{name} of draw {draw}".encode()
        for draw, name in itertools.product(range(3), names)
    }
    paths = {}
    for draw in range(3):
        contents = {name: made[draw, name] for name in names}
        saved = bench.save(contents, tmp_path, draw)
        paths |= {(draw, name): path for name, path in saved.items()}
    assert {key: path.read_bytes() for key, path in paths.items()} == made
    with pytest.raises(FileExistsError):
        bench.save({names[0]: b"again"}, tmp_path, 0)

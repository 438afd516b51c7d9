"""One family of published networks, from Keras 3 to its files; the others by script."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECORD = ROOT / "results" / "your_own" / "families.json"


@pytest.mark.soak
def test_every_file_of_a_family_says_what_its_model_does(tmp_path):
    out = tmp_path / "families.json"
    script = ROOT / "scripts" / "bench_families.py"
    command = [sys.executable, script, "--work", tmp_path, "--json", out, "mobilenet"]
    subprocess.run(list(map(str, command)), check=True, timeout=900, cwd=ROOT)
    found = json.loads(out.read_text())["families"]["mobilenet"]
    assert found["doctor"]["status"] in (0, 3), found["doctor"]
    assert found["doctor"]["deviation"] < 1e-4
    assert found["pruned"]["macs"] < 0.75 * found["macs"]
    assert found["pruned"]["deviation_from_masked"] < 1e-3
    assert found["files"]["float32"]["largest_deviation"] < 1e-3
    # What has learned next to nothing amplifies a rounding as any noise.
    assert found["files"]["int8"]["same_class"] > 0.7


def test_every_family_on_record_says_what_keras_says():
    families = json.loads(RECORD.read_text())["families"]
    assert len(families) >= 5
    for name, found in families.items():
        assert found["doctor"]["deviation"] < 1e-4, name
        assert found["pruned"]["deviation_from_masked"] < 1e-3, name
        assert found["files"]["float32"]["same_class"] == 1, name
        assert found["files"]["float32"]["largest_deviation"] < 1e-4, name
        assert found["doctor"]["status"] in (0, 3), name

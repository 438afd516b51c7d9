"""`kdprune slim` writes smaller files, or says why not."""

import pytest

from kdprune import cli
from kdprune.tflite import slim_tflite


def test_a_file_is_slimmed_in_place_and_again_it_is_kept(tflites, tmp_path, capsys):
    path = tmp_path / "m.tflite"
    path.write_bytes(tflites["int8"].read_bytes())
    before = path.stat().st_size
    assert cli.main(["slim", str(path)]) == 0
    line = capsys.readouterr().out
    assert f"{before:,} to {path.stat().st_size:,} bytes" in line
    assert "bit-equal" in line and "16 on xnnpack" in line
    assert path.read_bytes() == slim_tflite(tflites["int8"]).content
    assert cli.main(["slim", str(path)]) == 0
    assert "kept as it is, nothing in it is stored twice" in capsys.readouterr().out


def test_several_files_go_into_a_folder_and_stay_where_they_are(tflites, tmp_path):
    files = [tflites["int8"], tflites["float32"]]
    originals = [path.read_bytes() for path in files]
    assert cli.main(["slim", *map(str, files), "-o", str(tmp_path)]) == 0
    for path, original in zip(files, originals, strict=True):
        assert path.read_bytes() == original
        assert 0 < (tmp_path / path.name).stat().st_size <= len(original)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["FILE", "FILE", "-o", "TMP/none"], "an existing folder for 2 files"),
        (["FILE", "FILE", "-o", "TMP"], "two of the files have the same name"),
        (["FILE", "-o", "TMP/none/m.tflite"], "its folder does not exist"),
        (["TMP/absent.tflite"], "no model file at"),
        (["FILE", "WORDS", "-o", "TMP"], "not a .tflite model"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    tflites, tmp_path, capsys, arguments, message
):
    (tmp_path / "words.tflite").write_text("these are words, not a model")
    places = {"FILE": tflites["int8"], "WORDS": tmp_path / "words.tflite"}
    given = [str(places.get(a, a)).replace("TMP", str(tmp_path)) for a in arguments]
    assert cli.main(["slim", *given]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["words.tflite"]

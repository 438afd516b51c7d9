"""A section of the report for a kind of stage of one's own."""

import pytest

from kdprune.report import Section, page, register_section
from kdprune.report.document import Paragraph, to_markdown
from kdprune.report.page import write_page


def write(stage, plots):
    (cell,) = stage.cells
    return [Paragraph(f"Watermarked with <{cell.record['results']['mark']}>.")]


def test_a_section_shows_what_its_kind_has_recorded(records, monkeypatch):
    monkeypatch.setattr(page, "SECTIONS", dict(page.SECTIONS))
    results = {"mark": "owl", "val_accuracy": 0.8}
    run = records.add_stage("signed", kind="watermark", results=results).run()
    assert "`mark` owl" in to_markdown(write_page(run, {}))
    register_section("watermark", Section(write, shown=frozenset({"mark"})))
    text = to_markdown(write_page(run, {}))
    assert "Watermarked with &lt;owl>." in text
    assert "`mark` owl" not in text and "`val_accuracy` 0.8" in text
    with pytest.raises(ValueError, match="there is a report section 'watermark'"):
        register_section("watermark", Section(lambda stage, plots: []))


def test_the_devices_that_the_flagship_fits_are_shown(records):
    fits = [
        {
            "board": board,
            "fits": good,
            "place": "ram" if good else None,
            "flash": 2**17,
            "flash_of": 2**20,
            "ram": 2**16,
            "ram_of": 2**15 if not good else 2**18,
            "measured": True,
            "reasons": [] if good else ["65,536 bytes of RAM of 32,768"],
        }
        for board, good in (("Board A", True), ("Board B", False))
    ]
    records.add("alone", 0.8).add("best_int8", 0.8, entry={"fits": fits})
    run = records.run()
    assert "Devices" not in to_markdown(write_page(run, {}))
    run.metrics["flagship"] = "best_int8"
    text = to_markdown(write_page(run, {}))
    assert "## Devices" in text and "measured by TFLite Micro" in text
    assert "| Board A | yes | 128 of 1,024 | 64 of 256 | – |" in text
    assert "| Board B | no | 128 of 1,024 | 64 of 32 | 65,536 bytes of RAM" in text

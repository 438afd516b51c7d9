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

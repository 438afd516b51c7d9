"""`report.html`: its text, and how it behaves in a real Chromium."""

import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import time

import pytest

from kdprune.report import write_report
from kdprune.report.html import sort_value

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: apt-get install chromium"
)
WIDTHS = (400, 1400)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


class Browser:
    """A headless Chromium, driven by the DevTools protocol over a pipe."""

    def __init__(self, profile):
        to_read, self._commands = os.pipe()
        self._answers, to_write = os.pipe()

        def wire():
            # The protocol's file descriptors; duplicated first, as they may overlap.
            ends = os.dup(to_read), os.dup(to_write)
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            close_fds=False,
            preexec_fn=wire,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._ids, self.events = b"", itertools.count(1), []
        self._session = None
        pages = self.send("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        """Sends a command and returns its answer; events are kept meanwhile."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self):
        while b"\0" not in self._buffer:
            chunk = os.read(self._answers, 1 << 20)
            assert chunk, "Chromium has ended"
            self._buffer += chunk
        content, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(content)

    def open(self, path, width, scheme="light"):
        """Opens a file in a window of this width, and waits for all of it."""
        self.events.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 800,
        )
        self.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.send("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + 60
        while self.evaluate("document.readyState + location.protocol") != (
            "completefile:"
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def evaluate(self, expression):
        """Returns what JavaScript makes of an expression."""
        answer = self.send(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, expression):
        """Clicks with the mouse on the middle of an element, as a user does."""
        x, y = self.evaluate(
            f"(() => {{ const e = {expression}; "
            "e.scrollIntoView({block: 'center', inline: 'center'}); "
            "const b = e.getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                clickCount=1,
            )

    def press(self, key, code):
        """Presses a key on what has the focus."""
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                text="\r" if key == "Enter" and kind == "keyDown" else "",
            )

    def screenshot(self, path, whole=False):
        """Saves what is seen, or the whole page."""
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def faults(self):
        """Script errors, refusals and requests of other than the file itself."""
        bad = ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed")
        found = [e for e in self.events if e.get("method") in bad]
        asked = [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]
        return found + [u for u in asked if not u.startswith(("file:", "data:"))]

    def close(self):
        """Ends the process."""
        with contextlib.suppress(OSError, AssertionError):
            self._session = None
            self.send("Browser.close")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        os.close(self._answers)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium for all tests of the module."""
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


HOSTILE = '<img src=x onerror="document.title=1">&"\'</script>{{ 7 * 7 }}'


def add_models(records):
    """A run with a flagship, a baseline, a hostile name, missing and long ones."""
    size = {"format": "tflite", "resolver": "xnnpack", "threads": 1}
    for number, (name, accuracy, bytes_, latency) in enumerate(
        (
            ("alone", 0.8897, 317_440, 0.257),
            ("small_int8", 0.8928, 95_792, 0.0779),
            ("other_int8", 0.88, 9_800, 0.8),
            ("a_rather_long_name_of_a_student_with_many_words_int8", 0.7, 2_000, 12.0),
            (HOSTILE, 0.5, 1_000_000, None),
        )
    ):
        half = 0.006
        entry = {
            **size,
            "dtype": "float32" if name == "alone" else "int8",
            "accuracy_ci": [accuracy - half, accuracy + half],
            "bytes": bytes_,
            "bytes_gzip": 0.8 * bytes_,
            "peak_activation_bytes": 49_152 if name == "small_int8" else 196_608,
            "latency_ms_p50": latency,
            "latency_ms_p90": latency,
        }
        stage = f"stage_{number}" if name == HOSTILE else name
        settings = {"note": HOSTILE, "epochs": 3}
        records.add(name, accuracy, stage=stage, entry=entry, settings=settings)
    return records


@pytest.fixture
def page(records):
    """The page of such a run."""
    add_models(records).run()
    metrics = records.folder / "metrics.json"
    content = json.loads(metrics.read_text())
    command = "kdprune run configs/a_recipe_of_a_rather_long_name.yaml " + "--x y " * 30
    metrics.write_text(
        json.dumps({**content, "flagship": "small_int8", "command": command})
    )
    write_report(records.folder)
    return records.folder / "report.html"


def cards(text):
    """The verdict's cards: title, then the other lines."""
    found = re.findall(r'<div class="card">(.*?)</div>', text, re.S)
    lines = [re.sub(r"<[^>]+>", "", card).split("\n") for card in found]
    return {
        card[1].strip(): [line.strip() for line in card[2:] if line.strip()]
        for card in lines
    }


def test_the_verdict_stands_first_with_what_the_baseline_has(page):
    text = page.read_text()
    assert cards(text) == {
        "Accuracy": [
            "89.28 %",
            "95 % interval 88.68 to 89.88",
            "+0.31 points against alone (88.97 %), within the interval",
        ],
        "Size of the file": [
            "95,792 bytes",
            "76,634 in gzip",
            "3.3 times smaller than alone (317,440 bytes)",
        ],
        "Memory": [
            "49,152 bytes",
            "peak activation memory",
            "4.0 times less than alone (196,608 bytes)",
        ],
        "Latency": [
            "0.0779 ms",
            "median of one image; 1 thread, xnnpack",
            "3.3 times faster than alone (0.257 ms)",
        ],
    }
    assert text.index('class="verdict"') < text.index("<table")
    assert text.count('class="change better"') == 3


def test_a_study_without_a_flagship_counts_what_helps(records):
    records.add("alone", (0.80, 0.801, 0.802)).add("better", (0.85, 0.851, 0.852))
    records.add("worse", (0.70, 0.701, 0.702)).add("same", (0.8, 0.802, 0.8005))
    records.run()
    write_report(records.folder)
    found = cards((records.folder / "report.html").read_text())
    assert found["Accuracy of alone"] == ["80.10 %", "± 0.10 over 3 seeds", "baseline"]
    assert [found[title][0] for title in ("Help", "Hurt", "Neither")] == [
        "1 of 3 models"
    ] * 3
    markdown = (records.folder / "report.md").read_text()
    assert "**better**: +5.00 points (" in markdown


def test_names_from_records_stay_names(page):
    text = page.read_text()
    assert "<img src=x" not in text and "49" not in re.findall(r"\{\{.*?\}\}", text)
    assert "&lt;img src=x onerror=" in text
    assert text.count("</script>") == 1
    assert "{{ 7 * 7 }}" in text


def test_the_page_needs_no_other_file(page):
    text = page.read_text()
    assert "default-src 'none'" in text
    images = re.findall(r'<img src="([^"]+)" alt="([^"]+)"', text)
    assert len(images) >= 3
    assert all(source.startswith("data:image/png;base64,") for source, _ in images)
    assert "<link" not in text and " src=x" not in text.replace("img src=x", "")
    assert set(re.findall(r'href="(?!#)([^"]+)"', text)) <= {
        "https://github.com/mlcommons/tiny"
    }


def test_writing_again_gives_the_same_bytes(page):
    before = page.read_bytes()
    write_report(page.parent)
    assert page.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("98,496", 98496),
        ("88.30 (87.65 to 88.92)", 88.3),
        ("-0.31 ± 0.2", -0.31),
        ("+5.18", 5.18),
        ("12.50 M", 12.5),
        ("< 0.001", 0.001),
        ("0.257 / 0.296", 0.257),
        ("1e-05", 1e-5),
        ("2.5 s", 2.5),
        ("10 min 34 s", 634),
        ("1 h 3 min", 3780),
        ("–", None),
        ("", None),
        ("3x3_conv", None),
        ("student", None),
    ],
)
def test_cells_are_sorted_by_the_number_they_start_with(text, value):
    assert sort_value(text) == value


def column(browser, number, table="document.querySelector('#models table')"):
    return browser.evaluate(
        f"[...{table}.tBodies[0].rows].map(r => r.cells[{number}].textContent)"
    )


HEAD = "document.querySelectorAll('#models thead button')"


@needs_chromium
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_chromium_shows_the_page_without_errors_or_sideways_scrolling(
    browser, page, width, scheme
):
    browser.open(page, width, scheme)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.faults() == []
    assert browser.evaluate("document.title").startswith("kdprune report")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("innerWidth") == width
    # What is wider than the window scrolls in its own box, and no text is tiny.
    boxes = browser.evaluate(
        "[...document.querySelectorAll('table')].map(t => [t.offsetWidth, "
        "t.parentElement.clientWidth, getComputedStyle(t.parentElement).overflowX])"
    )
    assert all(overflow == "auto" for *_, overflow in boxes)
    assert all(box <= width for _, box, _ in boxes)
    smallest = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('p, td, th, dd, dt, figcaption')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 12
    loaded = "[...document.images].every(i => i.complete && i.naturalWidth > 100)"
    assert browser.evaluate(loaded)


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_it_is_on(browser, page, scheme, luminance, contrast):
    browser.open(page, 1400, scheme)
    pairs = browser.evaluate(
        """[...document.querySelectorAll(
            'p, a, td, th, dt, dd, h1, h2, h3, figcaption, button')].map(element => {
          let behind = element, paper = 'rgba(0, 0, 0, 0)';
          while (behind && paper === 'rgba(0, 0, 0, 0)') {
            paper = getComputedStyle(behind).backgroundColor;
            behind = behind.parentElement;
          }
          return [getComputedStyle(element).color, paper];
        })"""
    )
    assert len(pairs) > 100
    for ink, paper in {tuple(pair) for pair in pairs}:
        one, other = (
            luminance([float(part) / 255 for part in re.findall(r"[\d.]+", c)[:3]])
            for c in (ink, paper)
        )
        assert contrast(one, other) >= 4.5, (ink, paper)


@needs_chromium
@pytest.mark.parametrize("width", WIDTHS)
def test_a_click_sorts_and_a_missing_figure_stays_last(browser, page, width):
    browser.open(page, width)
    before = column(browser, 4)
    assert before == ["317,440", "95,792", "9,800", "2,000", "1,000,000"]
    orders = []
    for _ in range(3):
        browser.click(f"{HEAD}[4]")
        orders.append(column(browser, 4))
    assert orders[0] == ["2,000", "9,800", "95,792", "317,440", "1,000,000"]
    assert orders[1] == orders[0][::-1]
    assert orders[2] == before
    for _ in range(2):  # the latency, which one has not
        browser.click(f"{HEAD}[10]")
        assert column(browser, 10)[-1] == "–"
    assert browser.faults() == []


@needs_chromium
def test_the_keyboard_sorts_and_readers_are_told(browser, page):
    browser.open(page, 1400)
    browser.evaluate(f"{HEAD}[0].focus()")
    for key, code, order in (("Enter", 13, "ascending"), (" ", 32, "descending")):
        browser.press(key, code)
        told = browser.evaluate(f"{HEAD}[0].parentElement.ariaSort")
        names = column(browser, 0)
        assert told == order
        assert names[0 if order == "ascending" else -1].startswith("<img")
    browser.press("Tab", 9)
    assert browser.evaluate(f"document.activeElement === {HEAD}[1]")


@needs_chromium
def test_stages_are_folded_until_asked_for(browser, page):
    browser.open(page, 400)
    count = "document.querySelectorAll('details[open]').length"
    stages = browser.evaluate("document.querySelectorAll('details').length")
    assert stages == 5 and browser.evaluate(count) == 0
    browser.click("document.querySelector('summary')")
    assert browser.evaluate(count) == 1
    browser.click("document.querySelector('.unfold')")
    assert browser.evaluate(count) == stages
    browser.click("document.querySelector('.unfold')")
    assert browser.evaluate(count) == 0

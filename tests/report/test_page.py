"""The report of runs of every kind: it stands alone, everybody can read it, and nothing in a folder can act in it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape
from pathlib import Path

import pytest

from dsvid.report import markup
from dsvid.report.markup import picture, prose, tag, text
from dsvid.report.page import report_page
from dsvid.report.reading import read_run
from dsvid.report.style import DARK, LIGHT, style_sheet
from tests.report.made_run import (
    EVIL,
    make_checkpoint,
    make_eventful,
    make_picture,
    make_settings,
    make_trained,
    make_weights,
    png,
)
from tests.report.reading_pages import check_page


def make_damaged(folder: Path) -> Path:
    make_trained(folder)
    for name in ("recipe.yaml", "ds_config.json", "run.json", "events.jsonl", "bad_clips.jsonl"):
        (folder / name).write_bytes(b"\xff{\n")
    make_picture(folder, 5).write_bytes(png()[:-9])
    (folder / "weights").mkdir()
    (folder / "weights" / "config.json").write_text("[")
    return folder


def make_lines_alone(folder: Path) -> Path:
    make_trained(folder)
    for name in ("recipe.yaml", "ds_config.json", "run.json"):
        (folder / name).unlink()
    return folder


RUNS: dict[str, Callable[[Path], Path]] = {
    "settings alone": make_settings,
    "trained": make_trained,
    "one line": lambda folder: make_trained(folder, range(10, 11)),
    "eventful": make_eventful,
    "damaged": make_damaged,
    "lines alone": make_lines_alone,
}


@pytest.fixture(params=RUNS)
def page(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return report_page(read_run(RUNS[request.param](tmp_path / "run")))


def test_every_page_stands_alone_and_can_be_read(page: str) -> None:
    check_page(page)


def test_what_a_finished_run_shows(tmp_path: Path) -> None:
    make_trained(tmp_path, range(100, 3201, 100))
    make_weights(tmp_path, 3200)
    make_checkpoint(tmp_path, 3200)
    make_picture(tmp_path, 3200)
    found = check_page(report_page(read_run(tmp_path)))
    for words in ("Finished: step 3,200 of 3,200", "Every key is as in the shipped recipe demo_pretrain", "Loss",
                  "Learning rate", "Gradient norm", "Throughput", "Waiting for data", "Peak memory", "step-00003200",
                  f"model.init={tmp_path}/weights", "No fault is recorded", "0123456789ab", "2.14.1"):  # fmt: skip
        assert words in found.text, words
    (image,) = found.all("img")
    assert image["alt"].startswith("Frames of one clip at step 3,200") and (image["width"], image["height"]) == (
        "8",
        "4",
    )


def test_a_run_that_stopped_says_how_to_go_on(tmp_path: Path) -> None:
    found = check_page(report_page(read_run(make_eventful(tmp_path / "a run"))))
    line = "deepspeed --num_accelerators 2 dsvid/train.py --ds_config ds_configs/zero2.json --recipe demo_finetune"
    assert f"{line} --out '{tmp_path}/a run' ds.bf16.enabled=false" in found.text
    assert "run.epochs" in found.text and "ds.bf16.enabled=false" in found.text
    assert "Reading limits this run" in found.text and "dsvid data pack" in found.text


def test_nothing_from_a_folder_is_markup(tmp_path: Path) -> None:
    page = report_page(read_run(make_eventful(tmp_path / EVIL.replace("/", "∕"))))
    found = check_page(page)
    assert "<script" not in page and 'onload="' not in page.replace("&quot;onload=&quot;", "")
    assert found.text.count('<script>alert("x")') > 30, "it is shown as text, everywhere where it was"
    assert "\x1b" not in page and "\ufffd[31m" in page


def test_secrets_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_settings(tmp_path, "demo_pretrain", "data.root=s3://me:pass123@host/x", data__root="s3://me:pass123@host/x")
    (tmp_path / "events.jsonl").write_text('{"kind": "save failed", "step": 3, "error": "hunter2-hunter2 is <b>"}\n')
    monkeypatch.setenv("MY_API_TOKEN", "hunter2-hunter2")
    page = report_page(read_run(tmp_path))
    assert "pass123" not in page and "hunter2" not in page and page.count("s3://me:***@host/x") >= 3
    assert "*** is &lt;b&gt;" in page


def test_each_damaged_file_is_named_on_the_page(tmp_path: Path) -> None:
    page = report_page(read_run(make_damaged(tmp_path / "run")))
    notice = page.partition('<div class="notice">')[2].partition("</div>")[0]
    for name in ("recipe.yaml", "ds_config.json", "run.json", "events.jsonl", "bad_clips.jsonl", "config.json",
                 "pictures/reconstruction-00000005.png"):  # fmt: skip
        assert f"<code>{name}</code>" in notice, name
    assert "Loss" in page and "Throughput" in page


def test_pictures_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    for data, words in ((b"GIF89a", "no PNG"), (png()[:-4], "cut off"), (b"", "no PNG")):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=words):
            picture(path, "")
    path.write_bytes(png())
    assert 'alt="&quot;&gt;"' in picture(path, '">')
    monkeypatch.setattr(markup, "MOST_PICTURE_BYTES", 10)
    with pytest.raises(ValueError, match="more than a page bears"):
        picture(path, "")


def test_pieces_of_pages() -> None:
    assert tag("p", "<&>", class_='"') == '<p class="&quot;">&lt;&amp;&gt;</p>'
    assert tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>", "escaped once"
    assert prose("`a<b` is c") == "<code>a&lt;b</code> is c"
    assert text("a\ud800\u202eb\x00") == "a\ufffd\ufffdb\ufffd", "no lone surrogates, no reversed writing"


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast(scheme: dict[str, str]) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for name in ("ink", "quiet", "link", "good", "attention", "bad"):
        assert min(contrast(scheme[name], scheme[ground]) for ground in ("ground", "card")) >= 4.5, name
    for name in ("c0", "c1", "c2", "c3", "c4", "c5", "level"):
        assert min(contrast(scheme[name], scheme[ground]) for ground in ("card", "band")) >= 3, name


def test_every_colour_of_the_style_sheet_is_of_both_schemes() -> None:
    used = set(re.findall(r"var\(--([a-z0-9]+)\)", style_sheet()))
    assert used == set(LIGHT) == set(DARK)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<script>onload = () => { for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument; page.querySelectorAll("details").forEach(one => one.open = true);
  const row = document.createElement("p"), root = page.documentElement;
  row.textContent = [frame.id, frame.clientWidth, root.scrollWidth, page.querySelectorAll("script").length,
    page.querySelectorAll(".plot svg").length,
    Math.round(page.querySelector(".plot svg").getBoundingClientRect().width)];
  document.body.append(row) } }</script>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium): the layout is not measured")
def test_no_page_scrolls_sideways_in_a_browser(tmp_path: Path) -> None:
    page = report_page(read_run(make_eventful(tmp_path / "run")))
    inside = f'height="900" srcdoc="{escape(page)}"'
    inside = f'height="900" srcdoc="{escape(page)}"'
    frames = "".join(f'<iframe id="w{width}" width="{width}" {inside}></iframe>' for width in (360, 400, 1600))
    (tmp_path / "frames.html").write_text(f"<!doctype html><body>{frames}{MEASURE}")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path / 'frames.html'}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    rows = [row.split(",") for row in re.findall(r"<p>(w[\d,]+)</p>", done.stdout)]
    assert [row[0] for row in rows] == ["w360", "w400", "w1600"]
    for name, width, needed, scripts, charts, drawn in rows:
        assert int(needed) <= int(width), f"{name} scrolls sideways: {needed} pixels in {width}"
        assert scripts == "0" and int(charts) >= 7 and int(drawn) > 200

"""The laboratory's page: its tabs, averages and schedules, widths and colours, and how quickly it is drawn."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laboratory import needs_browser, slide, wait_for_the_end

import fastopt
from fastopt.demo.laboratory import settings
from fastopt.demo.laboratory.problems import PROBLEMS, noisy, series_point
from fastopt.demo.laboratory.runs import run
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.javascript.printer import print_program

ROOT = Path(__file__).parent.parent


def test_the_page_is_one_small_file_that_needs_nothing_else(page):
    text = page.read_text()
    assert len(text.encode()) < 500_000
    assert not re.search(
        r"https?://|<link(?! rel=\"icon\" href=\"data:,\")|\bsrc=|@import|url\(|import\(|fetch\(", text
    )


def test_no_source_of_the_page_is_generated():
    for file in (ROOT / "docs" / "laboratory").iterdir():
        assert "_pf32_gf32" not in file.read_text(), file


def test_the_command_says_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "fastopt.demo.laboratory", str(tmp_path / "x.html"), "--sources", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "this folder has not all sources of the laboratory" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.html").exists()


@needs_browser
def test_a_path_that_grows_step_by_step_is_the_one_that_is_drawn_at_once(lab):
    script = """const lab = laboratory.descent;
    const drawn = () => ["trails", "loss-trails"].map((id) => {
      const copy = document.createElement("canvas");
      [copy.width, copy.height] = [document.getElementById(id).width, document.getElementById(id).height];
      const context = copy.getContext("2d", { willReadFrequently: true });
      context.drawImage(document.getElementById(id), 0, 0);
      const { data } = context.getImageData(0, 0, copy.width, copy.height);
      return data.filter((x, k) => k % 4 === 3 && x > 200).length;
    });
    lab.goTo(0);
    const none = drawn();
    for (let t = 1; t <= 100; t++) lab.goTo(t);
    const grown = drawn();
    lab.compute();
    return [none, grown, drawn()];"""
    none, grown, whole = lab.run(script)
    assert none == [0, 0]
    assert min(whole) > 1000
    assert grown == pytest.approx(whole, rel=0.1)  # parts do not join at their ends


@needs_browser
def test_a_card_shows_the_code_that_is_printed(lab):
    lab.choose("#precision", "float32")
    lab.click(".card:nth-child(4) details summary")
    time.sleep(0.2)
    code = lab.find(".card:nth-child(4) pre").get_attribute("textContent")
    printed = print_program(trace(settings.RULES["adam"], "f32"))
    assert "p[i] = p_new;" in code
    assert code in "\n".join(line.removeprefix(" " * 6) for line in printed.splitlines())


@needs_browser
def test_tabs_follow_the_keyboard(lab):
    from selenium.webdriver.common.keys import Keys

    def selected() -> str:
        (tab,) = lab.all('[role="tab"][aria-selected="true"]')
        (panel,) = [p for p in lab.all('[role="tabpanel"]') if p.is_displayed()]
        assert panel.get_attribute("aria-labelledby") == tab.get_attribute("id")
        assert tab.get_attribute("tabindex") in (None, "0")
        return tab.text

    assert selected() == "Descent"
    presses = [(Keys.ARROW_RIGHT, "Averages"), (Keys.ARROW_RIGHT, "Schedules"), (Keys.ARROW_RIGHT, "Descent"),
               (Keys.ARROW_LEFT, "Schedules"), (Keys.HOME, "Descent"), (Keys.END, "Schedules")]  # fmt: skip
    lab.run("arguments[0].focus()", lab.find("#tab-descent"))
    for key, name in presses:
        lab.driver.switch_to.active_element.send_keys(key)
        assert selected() == lab.driver.switch_to.active_element.text == name
    outline = lab.driver.switch_to.active_element.value_of_css_property("outline-style")
    assert outline == "solid", "the focus is visible"


@needs_browser
def test_averages_are_those_of_ewa(lab):
    from selenium.webdriver.common.keys import Keys

    lab.click("#tab-averages")
    slide(lab, average_beta=0.95)
    slide(lab, average_noise=1.0)
    slide(lab, average_seed=2)
    lab.press("#averages-chart", Keys.HOME)
    ts = np.arange(1.0, 201.0)
    keys = [[np.array([key], np.uint32) for key in noise_keys(2, int(t))] for t in ts]
    z = np.array([noisy(np.zeros(1), 1.0, key0, key1, np.zeros(1, np.uint32))[0] for key0, key1 in keys])
    series = series_point(ts, z, 1.0)
    corrected, raw = (fastopt.EWA.over(series, beta=0.95, bias_correction=c) for c in (True, False))
    for t in (1, 2, 12, 200):
        lab.run("laboratory.averages.goTo(arguments[0])", t)
        found = [float(lab.find(f"#average-{k}").get_attribute("data-exact")) for k in ("theta", "raw", "corrected")]
        assert found == [series[t - 1], raw[t - 1], corrected[t - 1]]
    lab.press("#averages-chart", Keys.ARROW_LEFT)
    assert lab.find("#average-t").text == "199"
    assert float(lab.find("#window").get_attribute("data-exact")) == fastopt.EWA(0.95).window
    before = lab.run("return document.getElementById('averages-chart').toDataURL()")
    lab.click("#correction")
    assert lab.run("return document.getElementById('averages-chart').toDataURL()") != before


@needs_browser
def test_schedules_are_those_of_fastopt(lab):
    from selenium.webdriver.common.keys import Keys

    lab.click("#tab-schedules")
    for kind, chosen in (("cosine", {"warmup": 50}), ("time", {"k": 0.1}), ("exponential", {"gamma": 0.95})):
        lab.choose("#shown-schedule", kind)
        for name, value in chosen.items():
            slide(lab, **{f"shown_{name}": value})
        schedule: Any = settings.make_schedule(kind, 0.33, 200, **chosen)
        for key, t in ((Keys.HOME, 1), (Keys.END, 200), (Keys.ARROW_LEFT, 199)):
            lab.press("#rates-chart", key)
            assert lab.find("#rate-t").text == str(t)
            assert float(lab.find("#rate-now").get_attribute("data-exact")) == schedule(t)
        points = list(run(fastopt.SGD(lr=schedule), PROBLEMS["batch"], dtype=np.float64, steps=200, batch=2))
        settled = float(lab.find("#settled-schedule").get_attribute("data-exact"))
        assert settled == pytest.approx(np.mean([p.loss - PROBLEMS["batch"].least for p in points[-40:]]))


@needs_browser
@pytest.mark.parametrize("width", [400, 800, 1400])
def test_no_tab_is_wider_than_the_screen_and_every_control_has_a_name(chromium, page, width):
    chromium.resize(width, 800)
    chromium.open(page)
    chromium.click("#more-rules summary")
    chromium.click("#digits")
    chromium.run("document.querySelectorAll('.card details').forEach((code) => (code.open = true))")
    wider = """return [...document.querySelectorAll(".card, .rules, .results, .settings")].filter(
        (x) => x.scrollWidth > x.clientWidth || x.clientWidth > x.parentElement.clientWidth)"""
    assert not chromium.run(wider)
    for tab in ("descent", "averages", "schedules"):
        chromium.click(f"#tab-{tab}")
        time.sleep(0.1)
        assert chromium.run("return document.documentElement.scrollWidth") <= width
        for control in chromium.all("button, select, input, canvas[role]"):
            if control.is_displayed():
                assert control.accessible_name, control.get_attribute("outerHTML")
    assert chromium.errors() == []


@needs_browser
def test_colours_follow_the_system_until_they_are_chosen(chromium, page):
    def paper() -> str:
        return chromium.find("body").value_of_css_property("background-color")

    chromium.resize(1400, dark=True)
    chromium.open(page)
    dark = paper()
    picture = chromium.run("return document.getElementById('contours').toDataURL()")
    chromium.resize(1400)
    time.sleep(0.1)
    light = paper()
    assert dark != light
    assert chromium.run("return document.getElementById('contours').toDataURL()") != picture
    chromium.click("#theme")
    assert paper() == dark
    chromium.resize(1400)
    assert paper() == dark


@needs_browser
def test_the_first_paint_takes_less_than_a_second(lab, page):
    def first_paint() -> float:
        lab.open(page)
        time.sleep(0.3)
        return lab.run("return performance.getEntriesByName('first-contentful-paint')[0].startTime")

    assert min(first_paint() for _ in range(3)) < 1000
    assert lab.run("return performance.getEntriesByType('resource').length") == 0


@needs_browser
def test_paths_run_at_many_frames_a_second(lab):
    """60 where nothing else runs; a third of that is asked for, because tests share their processors."""
    slide(lab, speed=60)
    lab.click("#run")
    wait_for_the_end(lab)
    assert lab.run("return laboratory.descent.framesPerSecond") > 20

"""The laboratory's page, driven in Chromium as a person would: its numbers have the bits of fastopt.Optimizer's."""

import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest

import fastopt
from fastopt.demo.laboratory import settings
from fastopt.demo.laboratory.problems import BATCHES, PROBLEMS, noisy, series_point
from fastopt.demo.laboratory.runs import Point, run
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.javascript.printer import print_program

ROOT = Path(__file__).parent.parent
needs_browser = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())
BASICS = ("sgd", "momentum", "rmsprop", "adam")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Write the page as the documented command does."""
    out = tmp_path_factory.mktemp("laboratory") / "new" / "index.html"
    command = [sys.executable, "-m", "fastopt.demo.laboratory", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == f"{out}: {out.stat().st_size / 1000:.0f} kB\n"
    return out


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """Start one browser for the whole file, with an empty profile."""
    found = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.quit()


@pytest.fixture
def lab(chromium, page):
    """Open the page anew; at the end it must not have reported an error."""
    chromium.resize(1400)
    chromium.open(page)
    chromium.errors()
    yield chromium
    assert chromium.errors() == []


def shown(lab: browser.Browser) -> dict[str, Point]:
    """Return the numbers on the screen, exactly."""
    script = """return [...document.querySelectorAll("#numbers tbody tr")].map((row) => [
        row.dataset.rule, [...row.cells].slice(1).map((cell) => [cell.dataset.number, cell.dataset.exact])])"""
    found = {rule: dict(cells) for rule, cells in lab.run(script)}
    numbers = {rule: [float(cells[key]) for key in ("t", "x", "y", "loss")] for rule, cells in found.items()}
    return {rule: Point(int(t), x, y, loss) for rule, (t, x, y, loss) in numbers.items()}


SLIDERS = {
    "lr": settings.LEARNING_RATES,
    "betas-0": settings.DECAY_RATES,
    "betas-1": settings.DECAY_RATES,
    "beta": settings.DECAY_RATES,
    "noise": settings.NOISES,
    "seed": range(20),
    "run-length": settings.RUN_LENGTHS,
    "speed": (2, 5, 10, 30, 60, 120, 300),
    "batch": BATCHES,
    **{name: values for sliders in settings.SCHEDULES.values() for name, values in sliders.items()},
}
"""The last part of a slider's id → its values."""


def slide(lab: browser.Browser, **values: float) -> None:
    """Move sliders by keys, each to a value; for a - in a name stands _."""
    for name, value in values.items():
        css = name.replace("_", "-")
        of = SLIDERS[css] if css in SLIDERS else SLIDERS[css.partition("-")[2]]
        lab.slide(f"#{css}", list(of).index(value))
        assert float(lab.find(f"#{css}").get_attribute("data-value")) == value


def python(name: str, problem: str, t: int, *, dtype: str = "float64", rule: Any = None, **options: Any) -> Point:
    """Return where fastopt.Optimizer is at step t."""
    return points(name, problem, t, dtype=dtype, rule=rule, **options)[-1]


def points(name: str, problem: str, steps: int, *, dtype: str = "float64", rule: Any = None, **options: Any) -> list:
    """Return where fastopt.Optimizer is at steps 0, 1, …, by default with the page's learning rate."""
    rule = rule or replace(settings.RULES[name], lr=settings.rate(name, problem))
    start = options.pop("start", PROBLEMS[problem].start)
    return list(run(rule, PROBLEMS[problem]._replace(start=start), dtype=np.dtype(dtype), steps=steps, **options))


def wait_for_the_end(lab: browser.Browser) -> None:
    """Wait until a run of 100 steps is over."""
    for _ in range(200):
        if lab.find("#clock").text == "100" and lab.find("#run").text == "Run":
            return
        time.sleep(0.05)
    raise AssertionError("the run does not end")


def only(lab: browser.Browser, names: tuple[str, ...]) -> None:
    """Choose these rules and no others."""
    for chip in lab.all(".chip input:checked"):
        lab.run("arguments[0].click()", chip)
    for name in names:
        lab.click(f"#rule-{name}")


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


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_are_the_derivatives_of_their_functions(name):
    problem, rng, h = PROBLEMS[name], np.random.default_rng(3), 1e-6
    x, y = (rng.uniform(*limits, 50) for limits in (problem.x_range, problem.y_range))
    more = (rng.standard_normal(50), rng.standard_normal(50)) if problem.sampled else ()
    dx, dy = problem.gradient(x, y, *more)
    np.testing.assert_allclose(dx, (problem.f(x + h, y, *more) - problem.f(x - h, y, *more)) / (2 * h), 1e-4, 1e-4)
    np.testing.assert_allclose(dy, (problem.f(x, y + h, *more) - problem.f(x, y - h, *more)) / (2 * h), 1e-4, 1e-4)
    if not problem.sampled:
        assert [problem.f(*at) for at in problem.minima] == pytest.approx([problem.least] * len(problem.minima))


@needs_browser
@pytest.mark.parametrize(("problem", "precision"), [("bowl", "float64"), ("batch", "float32")])
def test_the_numbers_on_screen_are_the_optimizers_for_every_rule(lab, problem, precision):
    names = list(settings.RULES)
    lab.choose("#problem", problem)
    lab.choose("#precision", precision)
    lab.click("#more-rules summary")
    for first in range(0, len(names), 6):
        group = tuple(names[first : first + 6])
        only(lab, group)
        expected = {name: points(name, problem, PROBLEMS[problem].steps, dtype=precision, batch=8) for name in group}
        for t in (0, 3, PROBLEMS[problem].steps):
            lab.run("laboratory.descent.goTo(arguments[0])", t)
            assert shown(lab) == {name: path[t] for name, path in expected.items()}


@needs_browser
def test_run_pause_step_and_reset(lab):
    lab.click("#reset")
    assert {name: point.t for name, point in shown(lab).items()} == dict.fromkeys(BASICS, 0)
    for t in (1, 2, 3):
        lab.click("#step")
        assert shown(lab) == {name: python(name, "bowl", t) for name in BASICS}
    lab.click("#run")
    assert lab.find("#run").text == "Pause"
    time.sleep(0.4)
    lab.click("#run")
    assert lab.find("#run").text == "Run"
    paused = int(lab.find("#clock").text)
    assert 3 < paused < 100
    time.sleep(0.2)
    assert int(lab.find("#clock").text) == paused
    assert shown(lab) == {name: python(name, "bowl", paused) for name in BASICS}
    slide(lab, speed=300)
    lab.click("#run")
    wait_for_the_end(lab)
    assert shown(lab) == {name: python(name, "bowl", 100) for name in BASICS}
    assert "Step 100. Loss: SGD" in lab.run("return document.getElementById('announcement').textContent")


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
def test_sliders_of_rules_schedules_and_noise_change_the_run(lab):
    slide(lab, adam_lr=0.11)
    slide(lab, adam_betas_0=0.8)
    slide(lab, adam_betas_1=0.99)
    slide(lab, momentum_beta=0.95)
    slide(lab, noise=0.5)
    slide(lab, seed=3)
    slide(lab, run_length=200)
    lab.choose("#schedule", "step")
    slide(lab, schedule_every=20)
    slide(lab, schedule_factor=0.25)
    options = {"noise": 0.5, "seed": 3}

    def expected(schedule: Any) -> dict[str, Point]:
        rules = {name: replace(settings.RULES[name], lr=schedule(settings.rate(name, "bowl"))) for name in BASICS}
        rules["adam"] = fastopt.Adam(lr=schedule(0.11), betas=(0.8, 0.99))
        rules["momentum"] = replace(rules["momentum"], beta=0.95)
        return {name: python(name, "bowl", 200, rule=rule, **options) for name, rule in rules.items()}

    assert shown(lab) == expected(lambda lr: settings.make_schedule("step", lr, 200, every=20, factor=0.25))
    lab.choose("#schedule", "cosine")
    slide(lab, schedule_warmup=20)
    assert shown(lab) == expected(lambda lr: settings.make_schedule("cosine", lr, 200, warmup=20))
    assert lab.find("#adam-lr").get_attribute("aria-valuetext") == "0.11"


@needs_browser
def test_a_run_that_diverges_shows_infinities_and_goes_on(lab):
    lab.choose("#problem", "rosenbrock")
    slide(lab, sgd_lr=100.0, momentum_lr=100.0, rmsprop_lr=100.0, adam_lr=100.0)
    rules = {name: replace(settings.RULES[name], lr=100.0) for name in BASICS}
    expected = {name: points(name, "rosenbrock", 100, rule=rule) for name, rule in rules.items()}
    for t in (3, 10, 100):
        lab.run("laboratory.descent.goTo(arguments[0])", t)
        assert str(shown(lab)) == str({name: path[t] for name, path in expected.items()})  # NaN is not itself
    assert "nan" in str(expected["sgd"][100])
    assert "NaN" in lab.find('tr[data-rule="sgd"]').text


@needs_browser
def test_batch_sizes_change_the_run(lab):
    lab.choose("#problem", "batch")
    for size in (1, 64):
        slide(lab, batch=size)
        assert shown(lab) == {name: python(name, "batch", 200, batch=size) for name in BASICS}


@needs_browser
def test_the_start_moves_by_click_drag_and_keyboard(lab):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    def start() -> tuple[float, float]:
        lab.click("#reset")
        (_, x, y, _), *others = shown(lab).values()
        assert {(point.x, point.y) for point in others} == {(x, y)}
        return x, y

    canvas = lab.find("#map")
    (x0, x1), (y0, y1) = PROBLEMS["bowl"].x_range, PROBLEMS["bowl"].y_range
    width, height = canvas.size["width"], canvas.size["height"]
    lab.run("arguments[0].scrollIntoView({ block: 'center' })", canvas)
    ActionChains(lab.driver).move_to_element_with_offset(canvas, -100, 50).click().perform()
    x, y = start()
    assert x == pytest.approx(x0 + (0.5 - 100 / width) * (x1 - x0), abs=0.05)
    assert y == pytest.approx(y1 - (0.5 + 50 / height) * (y1 - y0), abs=0.02)
    lab.run("arguments[0].scrollIntoView({ block: 'center' })", canvas)
    drag = ActionChains(lab.driver).move_to_element_with_offset(canvas, -100, 50).click_and_hold()
    drag.move_by_offset(60, -80).release().perform()
    assert start() == pytest.approx((x + 60 / width * (x1 - x0), y + 80 / height * (y1 - y0)), abs=0.03)
    x, y = start()
    lab.press("#map", Keys.ARROW_LEFT, Keys.ARROW_UP)
    moved = start()
    assert moved == pytest.approx((x - 0.01 * (x1 - x0), y + 0.01 * (y1 - y0)), abs=1e-3)
    for _ in range(2):
        lab.click("#step")
    assert shown(lab) == {name: python(name, "bowl", 2, start=moved) for name in BASICS}
    lab.press("#map", *[Keys.SHIFT + Keys.ARROW_RIGHT] * 14)
    assert start()[0] == x1


@needs_browser
def test_a_tap_moves_the_start_and_a_finger_elsewhere_scrolls(chromium, page):
    chromium.resize(400, 800)
    chromium.open(page)
    box = chromium.run("return document.getElementById('map').getBoundingClientRect().toJSON()")
    x, y = box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"]
    touch = {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]}
    chromium.driver.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
    chromium.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    time.sleep(0.5)
    chromium.run("laboratory.descent.goTo(0)")
    (x0, x1), (y0, y1) = PROBLEMS["bowl"].x_range, PROBLEMS["bowl"].y_range
    _, x, y, _ = shown(chromium)["sgd"]
    assert (x, y) == pytest.approx((x0 + 0.75 * (x1 - x0), y1 - 0.25 * (y1 - y0)), abs=0.05)
    assert chromium.find("#map").value_of_css_property("touch-action") == "pan-y"

    def touch_at(kind: str, *at: float) -> None:
        points = [{"x": at[0], "y": at[1]}] if at else []
        chromium.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    begin = (box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"])
    touch_at("touchStart", *begin)  # on the start, which follows the finger up and down
    for k in range(1, 6):
        touch_at("touchMove", begin[0] - 10 * k, begin[1] + 15 * k)
    touch_at("touchEnd")
    time.sleep(0.3)
    _, x, y, _ = shown(chromium)["sgd"]
    expected = (begin[0] - 50 - box["x"]) / box["width"], (begin[1] + 75 - box["y"]) / box["height"]
    assert (x, y) == pytest.approx((x0 + expected[0] * (x1 - x0), y1 - expected[1] * (y1 - y0)), abs=0.1)
    assert chromium.run("return scrollY") == 0
    assert chromium.errors() == []


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
def test_no_more_than_six_rules_and_none_at_all(lab):
    only(lab, (*BASICS, "nesterov"))
    lab.click("#more-rules summary")
    lab.click("#rule-lion")
    assert not lab.find("#rule-yogi").is_enabled()
    styles = {
        row.find_element("css selector", "canvas").get_attribute("data-slot")
        for row in lab.all("#numbers tr[data-rule]")
    }
    assert len(styles) == 6
    lab.click("#rule-lion")
    assert lab.find("#rule-yogi").is_enabled()
    only(lab, ())
    assert shown(lab) == {}
    lab.click("#run")
    time.sleep(0.2)
    lab.click("#reset")


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

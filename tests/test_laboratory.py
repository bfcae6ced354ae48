"""The laboratory's runs, driven in Chromium as a person would: their numbers have the bits of fastopt.Optimizer's."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from laboratory import BASICS, needs_browser, only, points, python, shown, slide, wait_for_the_end

import fastopt
from fastopt.demo.laboratory import settings
from fastopt.demo.laboratory.problems import PROBLEMS
from fastopt.demo.laboratory.runs import Point


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

// Sliders over lists of values, and other parts of the page.

const $ = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// A slider over a list of values; `changed` is called with the new one. Its element has
// `setValue`, which goes to the nearest value and returns it.
function slider({ id, label, values, value, changed, unit = "" }) {
  const output = element("output", { for: id });
  const input = element("input", { type: "range", id, min: 0, max: values.length - 1, step: 1 });
  const show = () => {
    const text = `${values[input.value]}${unit}`;
    output.textContent = text;
    input.setAttribute("aria-valuetext", text);
    input.dataset.value = values[input.value];
  };
  const setValue = (wanted) => {
    const nearest = (best, x, k) => (Math.abs(x - wanted) < Math.abs(values[best] - wanted) ? k : best);
    input.value = values.reduce(nearest, 0);
    show();
    return values[input.value];
  };
  input.addEventListener("input", () => {
    show();
    changed(values[input.value]);
  });
  const made = element("div", { class: "slider" }, element("label", { for: id }, label), output, input);
  setValue(value);
  return Object.assign(made, { setValue });
}

// Tabs as the WAI-ARIA pattern has them: arrow keys, Home and End move and select.
function makeTabs(list, selected) {
  const tabs = [...list.querySelectorAll('[role="tab"]')];
  const select = (tab) => {
    for (const one of tabs) {
      const chosen = one === tab;
      one.setAttribute("aria-selected", chosen);
      one.tabIndex = chosen ? 0 : -1;
      $(one.getAttribute("aria-controls")).hidden = !chosen;
    }
    selected(tab.id.replace("tab-", ""));
  };
  for (const [k, tab] of tabs.entries()) {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: k + 1, ArrowLeft: k - 1 + tabs.length, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      tabs[to % tabs.length].focus();
      select(tabs[to % tabs.length]);
    });
  }
  return (name) => select($(`tab-${name}`));
}

const SCHEDULE_NAMES = {
  constant: "Constant", time: "By time: η / (1 + k t)", exponential: "Exponential: η γᵗ",
  step: "By steps: a factor now and then", cosine: "Cosine, after a warm-up",
};
const SCHEDULE_ABOUT = {
  constant: "The same step size throughout: fast at first, and as unsettled at the end.",
  time: "Falls quickly, then ever more slowly. Its sum is infinite, so it can reach a minimum however far away.",
  exponential: "The same percentage less at each step. Once it is small, the run is over, wherever it is.",
  step: "Constant for a while, then cut: the loss often falls at once after each cut.",
  cosine: "Rises for a few steps, while averages are still unreliable, then falls as half a cosine to zero at the end.",
};
const SETTING_NAMES = {
  k: "k, in 1/steps", gamma: "γ, factor of each step", every: "Steps between drops", factor: "Factor of a drop",
  warmup: "Steps of warm-up",
};

// A choice of schedule with its sliders; `changed` is called after each change. `chosen` has kind and settings.
function scheduleChoice({ select, slot, about, prefix, kind, changed }) {
  const chosen = { kind, settings: { ...fastopt.data.starting } };
  select.append(...Object.entries(SCHEDULE_NAMES).map(([value, text]) => element("option", { value }, text)));
  const show = () => {
    const sliders = Object.entries(fastopt.data.schedules[chosen.kind]).map(([name, values]) =>
      slider({
        id: `${prefix}-${name}`, label: SETTING_NAMES[name], values, value: chosen.settings[name],
        changed: (x) => {
          chosen.settings[name] = x;
          changed();
        },
      }),
    );
    slot.replaceChildren(...sliders);
    about.textContent = SCHEDULE_ABOUT[chosen.kind];
  };
  select.value = kind;
  select.addEventListener("change", () => {
    chosen.kind = select.value;
    show();
    changed();
  });
  show();
  return chosen;
}

// Shows a number: rounded or with all its digits, of which `data-exact` always has the latter.
function showNumber(cell, x, digits = 6) {
  cell.dataset.exact = Object.is(x, -0) ? "-0" : String(x);
  cell.textContent = digits === Infinity ? cell.dataset.exact : short(x, digits);
}

function short(x, digits) {
  if (!Number.isFinite(x)) return Number.isNaN(x) ? "NaN" : x > 0 ? "∞" : "−∞";
  const text = x !== 0 && (Math.abs(x) < 1e-4 || Math.abs(x) >= 1e6) ? x.toExponential(digits - 2) : x.toFixed(digits - 1);
  return text.replace(/^-/, "−").replace("e-", "e−").replace("e+", "e");
}

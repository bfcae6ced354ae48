// Starts the page: theme, tabs, and drawing anew when the window changes.

const laboratory = {};

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light colours" : "Dark colours";
  readColours();
}

const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
let themeChosen = false; // by the button; otherwise the system's is followed
setTheme(prefersDark.matches ? "dark" : "light");

const tabs = { descent: () => new Descent(), averages: () => new Averages(), schedules: () => new Schedules() };
let current = "descent";
const show = (name) => {
  current = name;
  laboratory[name] ??= tabs[name]();
  redraw();
};

function redraw() {
  const tab = laboratory[current];
  tab.drawBehind?.();
  tab.draw();
}

prefersDark.addEventListener("change", ({ matches }) => {
  if (themeChosen) return;
  setTheme(matches ? "dark" : "light");
  redraw();
});
$("theme").addEventListener("click", () => {
  themeChosen = true;
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  redraw();
});

const selectTab = makeTabs(document.querySelector('[role="tablist"]'), show);
selectTab("descent");
let waiting = 0;
new ResizeObserver(() => {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(redraw);
}).observe(document.querySelector("main"));

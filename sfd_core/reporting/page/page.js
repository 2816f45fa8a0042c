"use strict";
// Starts the parts of the page, and keeps the theme and the navigation.

function theme() {
  const button = document.getElementById("theme");
  const set = (value) => {
    document.documentElement.dataset.theme = value;
    button.textContent = value === "dark" ? "☀" : "☾";
    button.setAttribute("aria-label", value === "dark" ? "Light colours" : "Dark colours");
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  set(system.matches ? "dark" : "light");
  system.addEventListener("change", () => set(system.matches ? "dark" : "light"));
  button.addEventListener("click", () => set(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
}

function navigation() {
  const links = [...document.querySelectorAll("nav.bar a")];
  const mark = () => {
    const seen = links.filter((a) => document.querySelector(a.hash).getBoundingClientRect().top < innerHeight * 0.35).at(-1);
    for (const a of links) a.setAttribute("aria-current", String(a === seen));
  };
  addEventListener("scroll", () => requestAnimationFrame(mark), { passive: true });
  mark();
}

theme();
navigation();
convergence();
thumbs();
samples();
scrubber();
training();
longTraining();
publishedOffsets();

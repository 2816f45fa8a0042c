"use strict";
// Samples by snapshot, and the scrubber through one denoising run.

function thumbs() {
  for (const thumb of document.querySelectorAll(".thumb")) thumb.style.backgroundImage = `url("${DATA.grids[thumb.dataset.of].sheets.at(-1)}")`;
}

function samples() {
  const slider = document.getElementById("snapshot");
  if (!slider) return;
  const output = document.getElementById("snapshot-now");
  const show = () => {
    const index = Number(slider.value), said = [];
    for (const [name, grid] of Object.entries(DATA.grids)) {
      const k = Math.min(grid.sheets.length - 1, Math.round((index / Math.max(1, Number(slider.max))) * (grid.sheets.length - 1)));
      for (const cell of document.querySelectorAll(`.cell[data-variant="${name}"]`)) cell.style.backgroundImage = `url("${grid.sheets[k]}")`;
      const note = document.querySelector(`[data-distance="${name}"]`);
      if (note) note.textContent = grid.notes[k];
      said.push(grid.images_seen[k]);
    }
    const images = Math.max(...said);
    output.textContent = `${images.toLocaleString("en-US")} images seen`;
    slider.setAttribute("aria-valuetext", output.textContent);
  };
  slider.addEventListener("input", show);
  show();
}

function loaded(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = reject;
    image.src = source;
  });
}

async function scrubber() {
  const root = document.getElementById("scrubber");
  if (!root) return;
  const slider = document.getElementById("scrub"), play = document.getElementById("play"), form = document.getElementById("scrub-controls");
  const sheets = {};
  let run = null, timer = null, k = 0; // k: the frame shown; the slider itself runs over global time

  function pictures() {
    const pairs = document.getElementById("pairs");
    pairs.replaceChildren();
    pairs.style.setProperty("--n", run.count);
    pairs.style.setProperty("--few", run.count % 4 ? 3 : 4);
    for (let i = 0; i < run.count; i++) {
      const figure = html("figure", {}, pairs);
      if (run.semantics) html("canvas", { class: "semantic", width: run.grid, height: run.grid, role: "img" }, figure);
      html("canvas", { class: "texture", width: run.size, height: run.size, role: "img" }, figure);
      html("figcaption", {}, figure, run.labels[i] || "");
    }
  }

  function timeline() {
    const phases = document.getElementById("phases");
    phases.replaceChildren();
    for (const phase of run.phases) {
      const part = html("div", { "data-number": phases.children.length + 1, title: phase.name }, phases, phase.name);
      part.style.cssText = `width:${((phase.to - phase.from) / run.end) * 100}%;--p:${phase.colour}`;
    }
    for (const lane of document.querySelectorAll(".lane")) {
      const part = run.lanes[lane.dataset.part];
      lane.hidden = !part;
      if (part) lane.querySelector("i").style.cssText = `left:${(part.from / run.end) * 100}%;width:${((part.to - part.from) / run.end) * 100}%`;
    }
  }

  function frame(index) {
    k = Math.min(run.u.length - 1, Math.max(0, index));
    slider.value = run.u[k];
    const { textures, semantics } = sheets[run.name], phase = run.phases[run.phase[k]];
    document.querySelectorAll("#pairs figure").forEach((figure, i) => {
      const texture = figure.querySelector(".texture"), semantic = figure.querySelector(".semantic");
      texture.getContext("2d").drawImage(textures, i * run.size, k * run.size, run.size, run.size, 0, 0, run.size, run.size);
      texture.setAttribute("aria-label", `Decoded texture of sample ${[i + 1, run.labels[i]].filter(Boolean).join(", ")}, at global time ${run.u[k].toFixed(2)}`);
      texture.classList.toggle("idle", !phase.texture);
      if (!semantic) return;
      semantic.getContext("2d").drawImage(semantics, i * run.grid, k * run.grid, run.grid, run.grid, 0, 0, run.grid, run.grid);
      semantic.setAttribute("aria-label", `Semantic latent of sample ${i + 1} as colours at global time ${run.u[k].toFixed(2)}`);
      semantic.classList.toggle("idle", !phase.semantic);
    });
    document.getElementById("playhead").style.left = `${(run.u[k] / run.end) * 100}%`;
    for (const [part, values] of [["semantic", run.t_sem], ["texture", run.t_tex]]) {
      const value = document.querySelector(`.lane[data-part="${part}"] b`);
      if (value && values) value.textContent = `t = ${values[k].toFixed(2)}`;
    }
    document.querySelectorAll("#phases div").forEach((part, i) => part.classList.toggle("now", i === run.phase[k]));
    const label = document.getElementById("phase-now");
    if (label.dataset.phase !== run.phase[k] + run.name) { label.textContent = `${phase.name}: ${phase.says}`; label.style.color = phase.colour; label.dataset.phase = run.phase[k] + run.name; }
    document.getElementById("time-now").textContent = `u = ${run.u[k].toFixed(2)}`;
    slider.setAttribute("aria-valuetext", `global time ${run.u[k].toFixed(2)}, ${phase.name}`);
  }

  async function choose(name) {
    sheets[name] ??= { textures: await loaded(DATA.trajectories[name].textures), semantics: DATA.trajectories[name].semantics && await loaded(DATA.trajectories[name].semantics) };
    const time = run ? run.u[k] / run.end : 0.62;
    run = { name, ...DATA.trajectories[name] };
    slider.max = run.end;
    pictures(); timeline(); frame(nearest(time * run.end));
    root.dataset.ready = name;
  }

  function nearest(time) {
    return run.u.reduce((best, u, i) => (Math.abs(u - time) < Math.abs(run.u[best] - time) ? i : best), 0);
  }

  function stop() { clearInterval(timer); timer = null; play.textContent = "▶"; play.setAttribute("aria-label", "Play the denoising run"); }
  play.addEventListener("click", () => {
    if (timer) { stop(); return; }
    if (k === run.u.length - 1) frame(0);
    play.textContent = "❚❚"; play.setAttribute("aria-label", "Pause");
    timer = setInterval(() => { frame(k + 1); if (k === run.u.length - 1) stop(); }, 5000 / run.u.length);
  });
  slider.addEventListener("input", () => { stop(); frame(nearest(Number(slider.value))); });
  slider.addEventListener("keydown", (event) => {
    const to = { ArrowRight: k + 1, ArrowUp: k + 1, ArrowLeft: k - 1, ArrowDown: k - 1, PageUp: k + 5, PageDown: k - 5, Home: 0, End: Infinity }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    stop(); frame(to);
  });
  form.addEventListener("change", () => { stop(); choose(picked(form, "run")); });
  await choose(picked(form, "run"));
}

"use strict";
// Convergence curves with their switches, and the training curves by loss term.

const MARKERS = ["circle", "square", "diamond", "triangle"];
const PUBLISHED = Object.values(DATA.published.curves || {}).flatMap(Object.keys);

function colour(variant) {
  return `var(--v${DATA.variants.findIndex((v) => v.name === variant)})`;
}

function styled(variant) {
  const style = DATA.variants.find((v) => v.name === variant);
  if (PUBLISHED.includes(variant)) {
    const index = PUBLISHED.indexOf(variant);
    return { name: variant, colour: "var(--muted)", dash: ["6 4", "2 3", "9 3 2 3"][index % 3], marker: MARKERS[index % 4], width: 1.2, light: true };
  }
  if (!style) return { name: variant, colour: "var(--accent)", dash: "", marker: "circle" };
  return { name: variant, colour: colour(variant), dash: style.dash, marker: style.marker };
}

function picked(form, name) {
  const input = form.querySelector(`input[name="${name}"]:checked`);
  return input ? input.value : null;
}

function legend(box, names, redraw) {
  const hidden = new Set();
  for (const name of names) {
    const style = styled(name);
    const button = html("button", { type: "button", "aria-pressed": "true" }, box);
    const key = svg("svg", { viewBox: "0 0 26 12", "aria-hidden": "true" }, button);
    svg("line", { x1: 0, x2: 26, y1: 6, y2: 6, stroke: style.colour, "stroke-width": 2.4, "stroke-dasharray": style.dash || "none" }, key);
    marker(style.marker, 13, 6, style.colour, key);
    button.append(name);
    button.addEventListener("click", () => {
      hidden.has(name) ? hidden.delete(name) : hidden.add(name);
      button.setAttribute("aria-pressed", String(!hidden.has(name)));
      redraw();
    });
  }
  return hidden;
}

function convergence() {
  const form = document.getElementById("convergence-controls"), box = document.getElementById("convergence-chart");
  if (!form || !box) return;
  const names = Object.keys(DATA.curves);
  const draw = () => {
    const axis = picked(form, "axis"), number = (DATA.measures[picked(form, "measure")] || {})[picked(form, "evaluator")];
    const lines = picked(form, "lines") === "on" ? DATA.lines[number] || [] : [];
    const shown = picked(form, "published") === "on" ? publishedSeries(number, axis).filter((s) => !hidden.has(s.name)) : [];
    lineChart(box, {
      series: [...names.filter((n) => !hidden.has(n) && DATA.curves[n].numbers[number])
        .map((n) => ({ ...styled(n), x: DATA.curves[n][axis], y: DATA.curves[n].numbers[number] })), ...shown],
      lines: lines.map((l) => ({ name: l.name, y: l.value })),
      xAxis: axis, xLog: picked(form, "xscale") === "log", yLog: picked(form, "yscale") === "log",
      height: box.clientWidth < 620 ? 340 : 440, markers: true, endLabels: true, keyboard: true,
      label: `${number} of ${[...names, ...shown.map((s) => s.name)].join(", ")} against ${AXES[axis].label}`,
    });
  };
  const hidden = legend(document.getElementById("convergence-legend"), [...names, ...PUBLISHED], draw);
  form.addEventListener("change", draw);
  new ResizeObserver(draw).observe(box);
}

// Papers report steps, and their batch gives images; FLOPs and wall time are not known.
function publishedSeries(number, axis) {
  const curves = (DATA.published.curves || {})[number] || {};
  return Object.entries(curves).filter(([, c]) => c[axis])
    .map(([name, c]) => ({ ...styled(name), x: c[axis], y: c.y }));
}

function publishedOffsets() {
  const box = document.getElementById("published-offsets");
  if (!box) return;
  const published = { name: "published: SFD", colour: "var(--muted)", dash: "6 4", marker: "circle", width: 1.4, light: true, ...DATA.published.offsets };
  const own = Object.entries(DATA.published.own_offsets).map(([name, point]) => ({ ...styled(name), ...point }));
  const draw = () => lineChart(box, {
    series: [...own, published], xAxis: "delta_t", xLog: false, yLog: true, height: box.clientWidth < 620 ? 300 : 360,
    markers: true, endLabels: true, label: "fid against the offset, published and here",
  });
  new ResizeObserver(draw).observe(box);
}

function longTraining() {
  for (const box of document.querySelectorAll("[data-long]")) {
    const number = box.dataset.long;
    const draw = () => lineChart(box, {
      series: Object.entries(DATA.long).map(([name, curve]) => ({ ...styled(name), x: curve.images_seen, y: curve.numbers[number] })),
      lines: (DATA.long_lines[number] || []).filter((l) => !l.name.startsWith("oracle")).map((l) => ({ name: l.name, y: l.value })),
      xAxis: "images_seen", xLog: true, yLog: true, height: box.clientWidth < 620 ? 300 : 380, markers: true, endLabels: true,
      label: `${number} of a longer training`,
    });
    new ResizeObserver(draw).observe(box);
  }
}

function training() {
  for (const box of document.querySelectorAll("[data-term]")) {
    const group = DATA.training[box.dataset.group], term = box.dataset.term;
    const draw = () => lineChart(box, {
      series: Object.entries(group).filter(([, h]) => h.terms[term]).map(([name, h]) => ({
        ...styled(name), x: h.images_seen, y: h.terms[term],
      })),
      xAxis: "images_seen", xLog: false, yLog: box.dataset.log === "true", height: 210, label: `${term} while training`,
    });
    new ResizeObserver(draw).observe(box);
  }
}

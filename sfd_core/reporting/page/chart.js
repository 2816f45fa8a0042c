"use strict";
// A line chart in plain SVG. x and y may be logarithmic; every series has its own colour, marker and dash.

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, parent, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function html(tag, attributes, parent, text) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function metric(value, digits = 3) {
  const powers = ["", "k", "M", "G", "T", "P", "E", "Z"];
  if (value === 0) return "0";
  const power = Math.max(0, Math.min(powers.length - 1, Math.floor(Math.log10(Math.abs(value)) / 3 + 1e-9)));
  return `${Number((value / 10 ** (3 * power)).toPrecision(digits))}${power ? " " + powers[power] : ""}`;
}

function plain(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 100) return Math.round(value).toLocaleString("en-US");
  return size >= 0.001 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}

function duration(seconds) {
  if (seconds < 1) return `${Number(seconds.toPrecision(2))} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Number((seconds / 60).toPrecision(2))} min`;
  return `${Number((seconds / 3600).toPrecision(3))} h`;
}

const AXES = {
  images_seen: { label: "training images seen", format: (v) => metric(v) },
  steps: { label: "optimiser steps", format: (v) => metric(v) },
  flops: { label: "training FLOPs", format: (v) => `${metric(v)}${v >= 1000 ? "FLOP" : " FLOP"}` },
  seconds: { label: "training wall time", format: duration },
  delta_t: { label: "offset Δt", format: (v) => String(Number(v.toPrecision(3))) },
};

function linearTicks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const base = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * base).find((s) => s >= raw * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9); i++) ticks.push(i * step);
  return ticks;
}

function logTicks(low, high, count) {
  for (const steps of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 8]]) {
    const ticks = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const step of steps) {
        const tick = step * 10 ** e;
        if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
      }
    if (ticks.length >= Math.min(count, 4)) return ticks;
  }
  return linearTicks(low, high, count).filter((tick) => tick > 0);
}

// The vertical axis in bands, bottom up: reference values far from the curves get a narrow band of their own (a broken axis).
function bands(curves, references, logarithmic) {
  const f = logarithmic ? Math.log : (v) => v, back = logarithmic ? Math.exp : (v) => v;
  let low = Math.min(...curves), high = Math.max(...curves);
  const reach = 0.5 * Math.max(f(high) - f(low), logarithmic ? 0.1 : Math.abs(high) * 0.05);
  const [below, above] = [references.filter((v) => f(v) < f(low) - reach), references.filter((v) => f(v) > f(high) + reach)];
  for (const value of references) if (!below.includes(value) && !above.includes(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  const padded = (values, share, most) => {
    const [a, b] = [f(Math.min(...values)), f(Math.max(...values))];
    const pad = (b - a || (logarithmic ? 0.2 : Math.abs(a) * 0.1) || 1) * most;
    const bottom = back(a - pad);
    return { low: !logarithmic && Math.min(...values) >= 0 ? Math.max(0, bottom) : bottom, high: back(b + pad), share };
  };
  const side = 0.19, parts = [];
  if (below.length) parts.push(padded(below, side, 0.45));
  parts.push(padded([low, high], 1 - side * ((below.length > 0) + (above.length > 0)), 0.07));
  if (above.length) parts.push(padded(above, side, 0.45));
  return parts;
}

function scale(low, high, from, to, logarithmic) {
  const f = logarithmic ? Math.log : (v) => v;
  const a = f(low), b = f(high);
  return (value) => from + ((f(value) - a) / (b - a || 1)) * (to - from);
}

function marker(kind, x, y, colour, parent, radius = 4.5) {
  const shapes = {
    circle: () => svg("circle", { cx: x, cy: y, r: radius, fill: colour }, parent),
    square: () => svg("rect", { x: x - radius, y: y - radius, width: 2 * radius, height: 2 * radius, fill: colour }, parent),
    diamond: () => svg("path", { d: `M${x} ${y - radius * 1.35}L${x + radius * 1.35} ${y}L${x} ${y + radius * 1.35}L${x - radius * 1.35} ${y}Z`, fill: colour }, parent),
    triangle: () => svg("path", { d: `M${x} ${y - radius * 1.25}L${x + radius * 1.25} ${y + radius}L${x - radius * 1.25} ${y + radius}Z`, fill: colour }, parent),
  };
  return (shapes[kind] || shapes.circle)();
}

// Moves labels apart until none overlap, keeping clusters centred on their values and inside [low, high].
function spread(labels, gap, low, high) {
  const clusters = labels.sort((a, b) => a.y - b.y).map((label) => ({ labels: [label], centre: label.y }));
  for (let i = 0; i < clusters.length; i++) {
    const cluster = clusters[i], half = ((cluster.labels.length - 1) * gap) / 2;
    cluster.centre = Math.min(Math.max(cluster.centre, low + half), high - half);
    const before = clusters[i - 1];
    if (!before || before.centre + ((before.labels.length + cluster.labels.length) * gap) / 2 <= cluster.centre + 1e-6) continue;
    const all = [...before.labels, ...cluster.labels];
    clusters.splice(i - 1, 2, { labels: all, centre: all.reduce((sum, label) => sum + label.y, 0) / all.length });
    i -= 2;
  }
  for (const cluster of clusters)
    cluster.labels.forEach((label, k) => { label.at = cluster.centre + (k - (cluster.labels.length - 1) / 2) * gap; });
}

// options: series [{name, colour, dash, marker, x, y}], lines [{name, y}], xAxis, yLabel, xLog, yLog, height, markers, label
function lineChart(box, options) {
  box.classList.add("chart");
  const width = Math.max(260, box.clientWidth), height = options.height;
  const wide = width > 620 && options.endLabels;
  const longest = Math.max(...[...options.series, ...(options.lines || [])].map((s) => s.name.length + 7));
  const margin = { top: 10, right: wide ? Math.max(158, Math.min(longest * 6.4 + 16, width * 0.4)) : 12, bottom: 42, left: 58 };
  box.replaceChildren();
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": options.label }, box);
  const yLog = options.yLog && options.series.every((s) => s.y.every((y) => y === null || y > 0));
  const series = options.series.map((s) => {
    const keep = s.x.map((x, i) => i).filter((i) => s.y[i] !== null && s.x[i] !== null && (!options.xLog || s.x[i] > 0));
    return { ...s, x: keep.map((i) => s.x[i]), y: keep.map((i) => s.y[i]) };
  }).filter((s) => s.x.length);
  if (!series.length) { html("p", { class: "muted small" }, box, "No points to draw."); return; }
  const xs = series.flatMap((s) => s.x);
  let [x0, x1] = [options.xLog ? Math.min(...xs) : Math.min(0, ...xs), Math.max(...xs)];
  if (x0 === x1) x1 = x0 * 2 || 1;
  const X = scale(x0, x1, margin.left, width - margin.right, options.xLog);
  const lines = (options.lines || []).filter((l) => !yLog || l.y > 0);
  const inner = height - margin.bottom - margin.top, gap = 14;
  let floor = height - margin.bottom;
  const parts = bands(series.flatMap((s) => s.y), lines.map((l) => l.y), yLog).map((band, i, all) => {
    const top = i === all.length - 1 ? margin.top : floor - inner * band.share + gap;
    const part = { ...band, bottom: floor, top, at: scale(band.low, band.high, floor, top, yLog) };
    floor = top - gap;
    return part;
  });
  const Y = (value) => (parts.find((part) => value <= part.high) || parts.at(-1)).at(value);
  const xTicks = (options.xLog ? logTicks : linearTicks)(x0, x1, Math.max(3, Math.floor(width / 130)));
  const xFormat = AXES[options.xAxis].format;
  parts.forEach((part, i) => {
    for (const tick of (yLog ? logTicks : linearTicks)(part.low, part.high, Math.max(2, Math.floor((part.bottom - part.top) / 62)))) {
      svg("line", { x1: margin.left, x2: width - margin.right, y1: Y(tick), y2: Y(tick), class: "grid" }, root);
      svg("text", { x: margin.left - 8, y: Y(tick) + 4, "text-anchor": "end" }, root, plain(tick));
    }
    if (!i) return;
    const y = part.bottom + gap / 2;
    const d = `M${margin.left - 12} ${y + 2}l8 -5l8 5l8 -5`;
    svg("path", { d, class: "break" }, root);
    svg("line", { x1: margin.left + 14, x2: width - margin.right, y1: y, y2: y, class: "break", "stroke-dasharray": "1 6" }, root);
  });
  let last = -Infinity;
  for (const tick of xTicks) {
    const text = xFormat(tick), half = text.length * 3.4;
    const at = Math.min(Math.max(X(tick), margin.left), width - half - 2);
    if (at - half < last + 8) continue;
    last = at + half;
    svg("line", { x1: X(tick), x2: X(tick), y1: height - margin.bottom, y2: height - margin.bottom + 5, class: "grid" }, root);
    svg("text", { x: at, y: height - margin.bottom + 19, "text-anchor": "middle" }, root, text);
  }
  svg("text", { x: (margin.left + width - margin.right) / 2, y: height - 4, "text-anchor": "middle" }, root, AXES[options.xAxis].label + (options.xLog ? " (log)" : ""));
  const ends = [], named = [];
  for (const line of lines) {
    svg("line", { x1: margin.left, x2: width - margin.right, y1: Y(line.y), y2: Y(line.y), class: "reference" }, root);
    if (wide) ends.push({ y: Y(line.y), text: `${line.name} ${plain(line.y)}`, colour: null });
    else named.push({ y: Y(line.y) - 5, text: `${line.name} ${plain(line.y)}` });
  }
  for (const s of series) {
    const d = s.x.map((x, i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(s.y[i]).toFixed(1)}`).join("");
    svg("path", { d, fill: "none", stroke: s.colour, "stroke-width": s.width || (options.markers ? 2.4 : 1.6), "stroke-dasharray": s.dash || "none", "stroke-linejoin": "round" }, root);
    if (options.markers) s.x.forEach((x, i) => marker(s.marker, X(x), Y(s.y[i]), s.colour, root, s.light ? 2.6 : 4.5));
    ends.push({ y: Y(s.y.at(-1)), text: `${s.name} ${plain(s.y.at(-1))}`, colour: s.colour, light: s.light });
  }
  spread(named, 13, margin.top + 10, height - margin.bottom - 4);
  for (const name of named) svg("text", { x: margin.left + 4, y: name.at }, root, name.text);
  if (wide) {
    spread(ends, 16, margin.top + 6, height - margin.bottom);
    for (const end of ends) {
      const text = svg("text", { x: width - margin.right + 12, y: end.at + 4, class: end.colour && !end.light ? "end" : "" }, root, end.text);
      if (end.colour) text.style.fill = end.colour;
    }
  }
  if (yLog !== options.yLog) html("p", { class: "muted small" }, box, "Linear, as a value is not above 0.");
  crosshair(box, root, { series, X, Y, width, height, margin, options });
}

function crosshair(box, root, { series, X, width, height, margin, options }) {
  const stops = [...new Set(series.flatMap((s) => s.x))].sort((a, b) => a - b);
  const line = svg("line", { class: "cross", y1: margin.top, y2: height - margin.bottom, visibility: "hidden" }, root);
  const tip = html("div", { class: "tip", hidden: "" }, box);
  let current = -1;
  function show(index) {
    current = Math.min(stops.length - 1, Math.max(0, index));
    const stop = stops[current];
    line.setAttribute("x1", X(stop)); line.setAttribute("x2", X(stop)); line.setAttribute("visibility", "visible");
    tip.replaceChildren(); tip.hidden = false;
    html("b", {}, tip, AXES[options.xAxis].format(stop));
    const near = series.map((s) => {
      const i = s.x.reduce((best, x, k) => (Math.abs(X(x) - X(stop)) < Math.abs(X(s.x[best]) - X(stop)) ? k : best), 0);
      return { s, value: Math.abs(X(s.x[i]) - X(stop)) < 30 ? s.y[i] : null };
    }).filter((n) => n.value !== null).sort((a, b) => b.value - a.value);
    for (const { s, value } of near) {
      const row = html("div", {}, tip), name = html("span", {}, row);
      const swatch = html("i", { class: "swatch" }, name); swatch.style.background = s.colour;
      name.append(s.name); html("span", { class: "chosen" }, row, plain(value));
    }
    const left = X(stop) > width / 2 ? X(stop) - tip.offsetWidth - 14 : X(stop) + 14;
    tip.style.left = `${Math.max(0, left)}px`; tip.style.top = `${margin.top + 8}px`;
  }
  function hide() { tip.hidden = true; line.setAttribute("visibility", "hidden"); }
  function nearest(event) {
    const x = ((event.clientX - root.getBoundingClientRect().left) / root.getBoundingClientRect().width) * width;
    show(stops.reduce((best, s, k) => (Math.abs(X(s) - x) < Math.abs(X(stops[best]) - x) ? k : best), 0));
  }
  root.addEventListener("pointermove", nearest);
  root.addEventListener("pointerdown", nearest);
  root.addEventListener("pointerleave", hide);
  if (!options.keyboard) return;
  box.tabIndex = 0;
  box.setAttribute("aria-label", "Chart; left and right arrow keys read the values");
  box.onkeydown = (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) { event.preventDefault(); show(current + move); } else if (event.key === "Escape") hide();
  };
  box.onblur = hide;
}

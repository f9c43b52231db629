"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const LEFT = 46, RIGHT = 8, TOP = 6, BOTTOM = 20;
const whole = [data.first, data.last];
let shown = [...whole], step = data.start, timer = null;

function add(parent, name, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent.appendChild(made);
  return made;
}
const short = (x) => x === null || x === undefined ? "–" : Math.abs(x) >= 1e-3 && Math.abs(x) < 1e4 || x === 0
  ? String(Number(x.toPrecision(3))) : x.toExponential(1);
const grouped = (x) => Math.round(x).toLocaleString("en");

function ticks(low, high, log) {
  if (!log) {
    const raw = (high - low) / 4, power = 10 ** Math.floor(Math.log10(raw));
    const size = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw);
    const found = [];
    for (let i = Math.ceil(low / size - 1e-9); i * size <= high + 1e-9 * size; i++) found.push(i * size);
    return found;
  }
  for (const digits of [[1], [1, 3], [1, 2, 5]]) {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const d of digits) if (d * 10 ** e >= low * 0.999 && d * 10 ** e <= high * 1.001) found.push(d * 10 ** e);
    if (found.length >= 3 || digits.length === 3) return found;
  }
}

// Index of the value nearest to x in a sorted array.
function nearest(values, x) {
  let low = 0, high = values.length - 1;
  while (high - low > 1) { const m = (low + high) >> 1; if (values[m] < x) low = m; else high = m; }
  return values[high] !== undefined && Math.abs(values[high] - x) < Math.abs(values[low] - x) ? high : low;
}

function scale(range, low, high, log) {
  const f = log ? Math.log10 : (x) => x, a = f(range[0]), b = f(range[1]);
  return (x) => low + (high - low) * (f(x) - a) / (b - a);
}

function box(parent, name, keys = [], height) {
  const heading = document.createElement("h2");
  heading.textContent = name + " ";
  for (const [text, color] of keys) {
    const key = document.createElement("span"), dot = document.createElement("i");
    key.className = "key"; dot.style.background = color; key.append(dot, text); heading.append(" ", key);
  }
  const holder = document.createElement("div");
  holder.className = "box";
  parent.append(heading, holder);
  const svg = add(holder, "svg", {height, role: "img", "aria-label": name});
  return {holder, svg, heading, height};
}

function frame(svg, x, y, xticks, yticks, size, form = short) {
  const bottom = size[1] - BOTTOM, right = size[0] - RIGHT;
  add(svg, "path", {class: "axis", d: `M${LEFT} ${TOP}V${bottom}H${right}`});
  for (const t of yticks) {
    add(svg, "path", {class: "axis", d: `M${LEFT - 3} ${y(t)}h3`});
    add(svg, "text", {x: LEFT - 5, y: y(t) + 4, "text-anchor": "end"}, short(t));
  }
  for (const t of xticks) {
    add(svg, "path", {class: "axis", d: `M${x(t)} ${bottom}v3`});
    add(svg, "text", {x: x(t), y: bottom + 15, "text-anchor": "middle"}, form(t));
  }
}

// A panel over the steps; its cursor moves without drawing the lines again.
function timePanel(panel) {
  const keys = panel.series.filter((s) => s.label).map((s) => [s.label, s.color]);
  const {svg, height} = box(byId("time"), panel.name, keys, 128);
  let x, cursor;
  const pointed = (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    const part = (at - LEFT) / (svg.clientWidth - LEFT - RIGHT);
    go(shown[0] + part * (shown[1] - shown[0]));
  };
  svg.addEventListener("pointermove", (event) => { if (timer === null && (event.pointerType === "mouse" || event.buttons)) pointed(event); });
  svg.addEventListener("pointerdown", pointed);
  return {
    draw() {
      const width = svg.clientWidth;
      svg.replaceChildren();
      x = scale(shown, LEFT, width - RIGHT);
      const y = scale(panel.range, height - BOTTOM, TOP, panel.log);
      const clip = `clip${Math.random().toString(36).slice(2)}`;
      const area = add(add(svg, "clipPath", {id: clip}), "rect",
        {x: LEFT, y: 0, width: Math.max(width - LEFT - RIGHT, 1), height: height - BOTTOM + 2});
      frame(svg, x, y, ticks(...shown, false), ticks(...panel.range, panel.log), [width, height], grouped);
      const inside = add(svg, "g", {"clip-path": `url(#${clip})`});
      for (const at of data.onsets) add(inside, "path", {class: "onset", d: `M${x(at)} ${TOP}V${height - BOTTOM}`});
      for (const series of panel.series) {
        let path = "", pen = false;
        series.x.forEach((at, i) => {
          const value = series.y[i];
          if (value === null || panel.log && value <= 0) { pen = false; return; }
          const point = `${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
          path += series.kind === "dots" ? `M${point}h0` : (pen ? "L" : "M") + point;
          pen = true;
        });
        const look = {class: series.kind === "limit" ? "limit" : series.kind === "dots" ? "dots" : "series", d: path};
        add(inside, "path", series.kind === "limit" ? look : {...look, stroke: series.color});
      }
      cursor = add(svg, "path", {class: "cursor"});
    },
    move() { cursor.setAttribute("d", `M${x(step)} ${TOP}V${height - BOTTOM}`); },
  };
}

// The section nearest to the step, with the states on it.
function sectionPanel(sections) {
  const {holder, svg, heading} = box(byId("moment"), "Section", [], 250);
  const canvas = document.createElement("canvas");
  holder.prepend(canvas);
  const steps = sections.planes.map((plane) => plane.step);
  const bytes = sections.planes.map((plane) => Uint8Array.from(atob(plane.values), (c) => c.charCodeAt(0)));
  return {
    draw() {},
    move() {
      const i = nearest(steps, step), plane = sections.planes[i], [na, nb] = plane.shape;
      heading.textContent = `Section at step ${grouped(plane.step)}`;
      const room = svg.clientWidth - LEFT - RIGHT - 46;
      const spans = [plane.alpha[1] - plane.alpha[0], plane.beta[1] - plane.beta[0]];
      const width = Math.max(Math.min(room, 230), 40), high = Math.min(width * spans[1] / spans[0], 2 * width);
      const total = TOP + high + 2 * BOTTOM;
      svg.setAttribute("height", total);
      svg.replaceChildren();
      const x = scale(plane.alpha, LEFT, LEFT + width), y = scale(plane.beta, TOP + high, TOP);
      const small = document.createElement("canvas");
      small.width = na; small.height = nb;
      const pixels = small.getContext("2d").createImageData(na, nb);
      for (let a = 0; a < na; a++) for (let b = 0; b < nb; b++) {
        const value = bytes[i][a * nb + b], at = 4 * ((nb - 1 - b) * na + a);
        const color = value === 255 ? [128, 128, 128] : sections.colors[value];
        pixels.data.set([...color, 255], at);
      }
      small.getContext("2d").putImageData(pixels, 0, 0);
      const ratio = window.devicePixelRatio || 1;
      Object.assign(canvas, {width: width * ratio, height: high * ratio});
      Object.assign(canvas.style, {left: `${LEFT}px`, top: `${TOP}px`, width: `${width}px`, height: `${high}px`});
      // Pixels are centred on grid points: half a cell at each border lies outside.
      canvas.getContext("2d").drawImage(small, 0.5, 0.5, na - 1, nb - 1, 0, 0, canvas.width, canvas.height);
      svg.style.position = "relative";
      frame(svg, x, y, ticks(...plane.alpha, false), ticks(...plane.beta, false), [LEFT + width + RIGHT, TOP + high + BOTTOM]);
      add(svg, "text", {x: LEFT + width / 2, y: total - 4, "text-anchor": "middle"}, plane.names[0]);
      const up = add(svg, "text", {"text-anchor": "middle", transform: `translate(11 ${TOP + high / 2}) rotate(-90)`}, plane.names[1]);
      const bar = LEFT + width + 12, n = 32;
      for (let k = 0; k < n; k++) {
        const color = sections.colors[Math.round(254 * (k + 0.5) / n)];
        add(svg, "rect", {x: bar, y: TOP + high * (1 - (k + 1) / n), width: 8, height: high / n + 0.5, fill: `rgb(${color})`});
      }
      const z = scale(sections.range, TOP + high, TOP, sections.log);
      for (const t of ticks(...sections.range, sections.log)) add(svg, "text", {x: bar + 12, y: z(t) + 4}, short(t));
      if (plane.path) {
        const points = plane.path.alpha.map((a, k) => [x(a), y(plane.path.beta[k])]);
        const line = "M" + points.map((p) => p.map((v) => v.toFixed(1)).join(" ")).join("L");
        add(svg, "path", {d: line, fill: "none", stroke: "white", "stroke-width": 1});
        points.forEach(([px, py]) => add(svg, "circle", {cx: px, cy: py, r: 3, fill: "#f7d47c", stroke: "black", "stroke-width": 0.6}));
      }
    },
  };
}

// The density of all eigenvalues where there is one, and the largest as stems, against the threshold.
function spectrumPanel(spectrum) {
  const {svg, heading, height} = box(byId("moment"), "Spectrum", [], 120);
  return {
    draw() {},
    move() {
      const width = svg.clientWidth, bottom = height - BOTTOM;
      svg.replaceChildren();
      const x = scale(spectrum.range, LEFT, width - RIGHT);
      frame(svg, x, scale([0, 1], bottom, TOP), ticks(...spectrum.range, false), [], [width, height]);
      const said = [];
      if (spectrum.density) {
        const i = nearest(spectrum.density.step, step), y = scale(spectrum.density.range, bottom, TOP, true);
        for (const t of ticks(...spectrum.density.range, true).filter((_, k) => k % 2 === 0))
          add(svg, "text", {x: LEFT - 5, y: y(t) + 4, "text-anchor": "end"}, short(t));
        let path = "", pen = false;
        spectrum.density.values[i].forEach((value, k) => {
          if (value === null) { pen = false; return; }
          path += `${pen ? "L" : "M"}${x(spectrum.density.at[k]).toFixed(1)} ${y(value).toFixed(1)}`;
          pen = true;
        });
        add(svg, "path", {class: "series", d: path, stroke: "var(--ink)"});
        said.push(`density at step ${grouped(spectrum.density.step[i])}`);
      }
      if (spectrum.eigenvalues) {
        const i = nearest(spectrum.eigenvalues.step, step);
        spectrum.eigenvalues.values[i].forEach((value, k) => {
          if (value === null) return;
          add(svg, "path", {d: `M${x(value)} ${bottom}V${TOP + 34}`, stroke: spectrum.eigenvalues.colors[k], "stroke-width": 1.6});
          add(svg, "circle", {cx: x(value), cy: TOP + 34, r: 3.5, fill: spectrum.eigenvalues.colors[k]});
        });
        const limit = spectrum.eigenvalues.threshold && spectrum.eigenvalues.threshold[i];
        if (limit) add(svg, "path", {class: "limit", d: `M${x(limit)} ${TOP}V${bottom}`});
        said.unshift(`largest eigenvalues at step ${grouped(spectrum.eigenvalues.step[i])}`);
      }
      heading.textContent = `Spectrum: ${said.join(", ")}`;
    },
  };
}

// Shares of the gradient's norm at the step: along each mode, and outside.
function gradientPanel(gradient) {
  const {svg, heading} = box(byId("moment"), "Gradient", [], 20 * gradient.names.length + 4);
  return {
    draw() {},
    move() {
      const i = nearest(gradient.step, step), room = svg.clientWidth - LEFT - RIGHT - 40;
      heading.textContent = `Shares of the ${gradient.vector} norm at step ${grouped(gradient.step[i])}`;
      svg.replaceChildren();
      gradient.names.forEach((name, k) => {
        const value = gradient.values[i][k];
        add(svg, "text", {x: LEFT - 5, y: 20 * k + 16, "text-anchor": "end"}, name);
        add(svg, "rect", {x: LEFT, y: 20 * k + 5, width: Math.max(room * (value || 0), 0.5), height: 14, fill: gradient.colors[k]});
        add(svg, "text", {x: LEFT + room * (value || 0) + 5, y: 20 * k + 16}, value === null ? "–" : value.toFixed(2));
      });
    },
  };
}

const panels = data.panels.map(timePanel);
if (data.sections) panels.push(sectionPanel(data.sections));
if (data.spectrum) panels.push(spectrumPanel(data.spectrum));
if (data.gradient) panels.push(gradientPanel(data.gradient));
if (!byId("moment").children.length) document.querySelector(".columns").style.gridTemplateColumns = "minmax(0, 1fr)";

function go(to) {
  step = Math.min(Math.max(Math.round(to), whole[0]), whole[1]);
  byId("slider").value = step;
  byId("slider").setAttribute("aria-valuetext", `step ${grouped(step)}`);
  const words = [`step ${grouped(step)}`];
  if (data.period) words.push(`phase ${(step % data.period / data.period).toFixed(3)}`);
  for (const word of data.words) {
    const item = Array.isArray(word) ? data.panels[word[0]].series[word[1]] : word;
    const i = nearest(item.x, step);
    words.push(`${item.word} ${short(item.y[i])}${Math.abs(item.x[i] - step) > 0 ? ` (step ${grouped(item.x[i])})` : ""}`);
  }
  byId("now").textContent = words.join(" · ");
  if (step < shown[0] || step > shown[1]) zoom(shown[1] - shown[0]);
  panels.forEach((panel) => panel.move());
}

function zoom(width) {
  width = Math.min(Math.max(width, 20), whole[1] - whole[0]);
  const from = Math.min(Math.max(step - width / 2, whole[0]), whole[1] - width);
  shown = [from, from + width];
  panels.forEach((panel) => { panel.draw(); panel.move(); });
}

function play() {
  byId("play").textContent = timer === null ? "❚❚" : "▶";
  if (timer !== null) { clearInterval(timer); timer = null; return; }
  // An odd number of steps: an even one would show one state of a two-cycle only.
  const stride = Math.max(1, Math.round((shown[1] - shown[0]) / 300)) | 1;
  timer = setInterval(() => go(step + stride > shown[1] ? shown[0] : step + stride), 60);
}

// Inside of another page: its theme, and as high as needed.
function outside() {
  let theme = null;
  try {
    const root = window.parent.document.documentElement;
    if (window.parent !== window) {
      theme = root.dataset.theme;
      window.frameElement.style.height = `${document.body.scrollHeight + 8}px`;
    }
  } catch { /* a page of another origin: the system's theme then */ }
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = ["light", "dark"].includes(theme) ? theme : dark;
}

byId("title").textContent = data.title;
byId("title").hidden = !data.title;
Object.assign(byId("slider"), {min: whole[0], max: whole[1], step: 1});
byId("slider").addEventListener("input", (event) => go(Number(event.target.value)));
byId("play").addEventListener("click", play);
byId("in").addEventListener("click", () => zoom((shown[1] - shown[0]) / 2));
byId("out").addEventListener("click", () => zoom((shown[1] - shown[0]) * 2));
new ResizeObserver(() => { panels.forEach((panel) => panel.draw()); go(step); outside(); }).observe(document.querySelector(".columns"));
outside();
try {
  if (window.parent !== window) new MutationObserver(outside).observe(
    window.parent.document.documentElement, {attributes: true, attributeFilter: ["data-theme"]});
} catch { /* as above */ }
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", outside);

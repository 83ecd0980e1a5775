"use strict";
// The page's own script: level switches, threshold slider, sorting and filtering. It builds text
// nodes only and asks no other address for anything.
(() => {
  const byId = (id) => document.getElementById(id);
  const radios = (name) => [...document.querySelectorAll(`input[name="${name}"]`)];
  const data = JSON.parse(byId("threshold-data").textContent);

  // Halves go to the even digit, as Python's formatting does: a tie is an odd multiple of 1 / 2^(d+1)
  function fixed(value, digits) {
    const halves = value * 2 ** (digits + 1);
    if (Number.isInteger(halves) && halves % 2 !== 0) {
      const lower = Math.floor(value * 10 ** digits);
      return ((lower + (lower % 2)) / 10 ** digits).toFixed(digits);
    }
    return value.toFixed(digits);
  }
  const percent = (part, whole) => (whole ? `${fixed((100 * part) / whole, 1)} %` : "–");

  // Level switch over the panels of curves
  function showLevel() {
    const chosen = radios("detail-level").find((radio) => radio.checked);
    for (const panel of document.querySelectorAll("[data-level]")) {
      panel.hidden = panel.dataset.level !== chosen.value;
    }
  }
  for (const radio of radios("detail-level")) radio.addEventListener("change", showLevel);
  if (radios("detail-level").length) showLevel();

  // Threshold: histograms are [index, count, ...] over data.thresholds
  const slider = byId("threshold-slider");
  const number = byId("threshold-number");
  const classChoice = byId("threshold-class");
  const point = byId("threshold-point");
  const figures = new Map(
    [...document.querySelectorAll("#threshold-table [data-figure]")].map((row) => [row.dataset.figure, row.cells]),
  );

  function split(histogram, index) {
    let reached = 0, below = 0;
    for (let k = 0; k < histogram.length; k += 2) {
      if (histogram[k] >= index) reached += histogram[k + 1];
      else below += histogram[k + 1];
    }
    return [reached, below];
  }

  function show(figure, value, count) {
    const cells = figures.get(figure);
    if (!cells) return;
    cells[1].textContent = value;
    cells[2].textContent = count;
  }
  const share = (figure, part, whole) => show(figure, percent(part, whole), `${part} of ${whole}`);

  let spoken = 0;
  function say(id, text) {
    // Once the slider rests: a reader should not hear every step
    clearTimeout(spoken);
    spoken = setTimeout(() => { byId(id).textContent = text; }, 250);
  }

  function update() {
    const level = radios("threshold-level").find((radio) => radio.checked).value;
    const name = data.class_names[classChoice.value];
    const index = Number(slider.value);
    const threshold = data.thresholds[index];
    const series = data.levels[level][name];
    const [fp, tn] = split(series.others, index);
    let sentence;
    if (series.class) {
      const [tp, fn] = split(series.class, index);
      share("sensitivity", tp, tp + fn);
      share("specificity", tn, tn + fp);
      share("precision", tp, tp + fp);
      share("npv", tn, tn + fn);
      show("tp", tp, ""); show("fn", fn, ""); show("fp", fp, ""); show("tn", tn, "");
      sentence = `sensitivity ${percent(tp, tp + fn)}, specificity ${percent(tn, tn + fp)}, precision ${percent(tp, tp + fp)}`;
    } else {
      share("called", fp, fp + tn);
      share("not-called", tn, fp + tn);
      sentence = `${fp} of ${fp + tn} called`;
    }
    const text = String(Number(threshold.toFixed(4)));
    byId("threshold-caption").textContent = `${name} against the rest, ${level}, score ≥ ${text}`;
    slider.setAttribute("aria-valuetext", text);
    const stated = (data.operating_points[level] || {})[name];
    point.hidden = stated === undefined;
    if (stated !== undefined) {
      point.dataset.index = stated;
      point.textContent = `Operating point of validation: ${Number(data.thresholds[stated].toFixed(4))}`;
    }
    drawHistogram(series, threshold, classChoice.value);
    say("threshold-status", `${level}, ${name}, threshold ${text}: ${sentence}.`);
  }

  function setThreshold(index) {
    slider.value = index;
    number.value = String(Number(data.thresholds[index].toFixed(4)));
    update();
  }
  slider.addEventListener("input", () => setThreshold(Number(slider.value)));
  number.addEventListener("input", () => {
    const wanted = number.valueAsNumber;
    if (!(wanted >= 0 && wanted <= 1)) return;
    let best = 0;
    data.thresholds.forEach((value, index) => {
      if (Math.abs(value - wanted) < Math.abs(data.thresholds[best] - wanted)) best = index;
    });
    slider.value = best;
    update();
  });
  point.addEventListener("click", () => setThreshold(Number(point.dataset.index)));
  classChoice.addEventListener("change", update);
  for (const radio of radios("threshold-level")) radio.addEventListener("change", update);

  function drawHistogram(series, threshold, classIndex) {
    const svg = byId("threshold-histogram");
    const [left, width, middle, height] = [14, 392, series.class ? 104 : 190, series.class ? 90 : 176];
    const bins = 40;
    const draw = (tag, attributes, text) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      if (text !== undefined) element.textContent = text;
      svg.append(element);
    };
    const counted = (histogram) => {
      const counts = new Array(bins).fill(0);
      for (let k = 0; k < histogram.length; k += 2) {
        const bin = Math.min(bins - 1, Math.floor(data.thresholds[histogram[k]] * bins + 1e-9));
        counts[bin] += histogram[k + 1];
      }
      return counts;
    };
    const up = counted(series.class || series.others);
    const down = series.class ? counted(series.others) : new Array(bins).fill(0);
    const tallest = Math.sqrt(Math.max(1, ...up, ...down));
    svg.replaceChildren();
    for (let bin = 0; bin < bins; bin += 1) {
      const x = left + (bin * width) / bins;
      const high = (height * Math.sqrt(up[bin])) / tallest;
      const low = (height * Math.sqrt(down[bin])) / tallest;
      if (high) draw("rect", { x: x + 0.5, y: middle - high, width: width / bins - 1, height: high, fill: `var(--class-${classIndex % 8})` });
      if (low) draw("rect", { x: x + 0.5, y: middle, width: width / bins - 1, height: low, fill: "var(--quiet)" });
    }
    draw("line", { x1: left, x2: left + width, y1: middle, y2: middle, stroke: "currentColor", "stroke-width": 1 });
    const x = left + threshold * width;
    draw("line", { x1: x, x2: x, y1: 8, y2: 200, stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": "5 3" });
    for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
      draw("text", { x: left + tick * width, y: 216, "text-anchor": "middle", "font-size": 12, fill: "currentColor" }, String(tick));
    }
  }
  byId("threshold-form").addEventListener("submit", (event) => event.preventDefault());
  update();

  // Tables: sort by a column's button, filter by the form
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  function sortable(table, tell) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const order = new Map(rows.map((row, index) => [row, index]));
    for (const button of table.querySelectorAll("thead button")) {
      button.addEventListener("click", () => {
        const header = button.parentElement;
        // Figures are of most interest from the top
        const first = button.dataset.kind === "number" ? "descending" : "ascending";
        const second = first === "ascending" ? "descending" : "ascending";
        const wanted = header.getAttribute("aria-sort") === first ? second : first;
        for (const other of header.parentElement.cells) other.setAttribute("aria-sort", "none");
        header.setAttribute("aria-sort", wanted);
        const sign = wanted === "ascending" ? 1 : -1;
        const column = header.cellIndex;
        const key = (row) => (column ? row.cells[column].textContent : row.cells[0].firstChild.data);
        const value = (row) => Number(key(row));
        // What is no number stands last in either direction
        const compare = button.dataset.kind === "number"
          ? (a, b) => isNaN(value(a)) - isNaN(value(b)) || sign * (value(a) - value(b) || 0)
          : (a, b) => sign * collator.compare(key(a), key(b));
        rows.sort((a, b) => compare(a, b) || order.get(a) - order.get(b));
        body.append(...rows);
        tell(`sorted by ${button.textContent}, ${wanted}`);
      });
    }
    return rows;
  }
  const rows = sortable(byId("units-table"), (told) => {
    byId("filter-status").textContent = `${told}; ${shown()} shown`;
  });
  const burden = byId("burden-table");
  if (burden) sortable(burden, (told) => { byId("burden-status").textContent = told; });

  const shown = () => rows.filter((row) => !row.hidden).length;
  function filter() {
    const text = byId("filter-text").value.trim().toLowerCase();
    const value = (id) => (byId(id) ? byId(id).value : "");
    const wrong = byId("filter-wrong") && byId("filter-wrong").checked;
    for (const row of rows) {
      row.hidden = !(
        (!text || row.cells[0].firstChild.data.toLowerCase().includes(text)) &&
        (!value("filter-truth") || row.dataset.truth === value("filter-truth")) &&
        (!value("filter-pred") || row.dataset.pred === value("filter-pred")) &&
        (!wrong || row.dataset.verdict === "wrong")
      );
    }
    byId("filter-status").textContent = `${shown()} of ${rows.length} shown`;
  }
  for (const kind of ["input", "change"]) byId("filter-form").addEventListener(kind, filter);
  byId("filter-form").addEventListener("submit", (event) => event.preventDefault());
})();

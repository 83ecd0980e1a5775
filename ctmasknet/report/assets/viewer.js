"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const data = JSON.parse(by("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const DASHES = ["none", "6 3", "2 3"];
  const KEPT = 24;
  const shown = { scan: data.first[0], slice: data.first[1] };
  // Pictures that are decoded, the last used ones last
  const pictures = new Map();
  let drawn = null;
  // As the run had it, which the slider's steps may miss
  let least = data.threshold;

  const scan = () => data.scans[shown.scan];
  const slice = () => scan().slices[shown.slice];
  const classesShown = () =>
    new Set([...document.querySelectorAll(".lesion-class")].filter((box) => box.checked).map((box) => Number(box.value)));
  const visible = (lesions) => {
    const classes = classesShown();
    return lesions.map((lesion, index) => [lesion, index]).filter(([lesion]) => classes.has(lesion[0]) && lesion[1] > least);
  };

  function element(name, attributes, into, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    if (into) into.append(made);
    return made;
  }

  // What is read of a slice when it is shown; null while the file is still being read
  function block(scanIndex, sliceIndex) {
    const found = by(`slice-${scanIndex}-${sliceIndex}`);
    return found && (found.nextSibling || document.readyState !== "loading") ? JSON.parse(found.textContent) : null;
  }

  function picture(scanIndex, sliceIndex) {
    const key = `${scanIndex}-${sliceIndex}`;
    let found = pictures.get(key);
    if (!found) {
      const content = block(scanIndex, sliceIndex);
      if (!content) return null;
      found = { key, content, image: null, ready: Promise.resolve() };
      if (content.picture) {
        found.image = new Image();
        found.image.src = `data:image/jpeg;base64,${content.picture}`;
        content.picture = "";
        found.ready = found.image.decode().catch(() => {
          found.image = null;
          content.fault = "The picture of this slice is damaged.";
        });
      }
    }
    pictures.delete(key);
    pictures.set(key, found);
    if (pictures.size > KEPT) pictures.delete(pictures.keys().next().value);
    return found;
  }

  function windowLevels() {
    const choice = by("window").value;
    const [center, width] = choice === "model" ? data.window : choice.split(",").map(Number);
    const { hu, level } = data.knots;
    const levels = new Uint8ClampedArray(256);
    let part = 0;
    for (let value = 0; value < 256; value += 1) {
      while (part < level.length - 2 && value > level[part + 1]) part += 1;
      const share = (value - level[part]) / (level[part + 1] - level[part]);
      levels[value] = ((hu[part] + share * (hu[part + 1] - hu[part]) - center) / width + 0.5) * 255;
    }
    return levels;
  }

  function drawPicture() {
    const canvas = by("image");
    const { image, content } = drawn;
    const [height, width] = slice().size;
    canvas.width = image ? image.naturalWidth : width;
    canvas.height = image ? image.naturalHeight : height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    by("absent").hidden = Boolean(image);
    by("absent").textContent = image ? "" : content.fault || "The picture of this slice was not found.";
    by("window-choice").hidden = !content.hu;
    if (!image) return;
    context.drawImage(image, 0, 0);
    if (!content.hu) return;
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    const levels = windowLevels();
    for (let at = 0; at < pixels.data.length; at += 4) {
      pixels.data[at] = pixels.data[at + 1] = pixels.data[at + 2] = levels[pixels.data[at]];
    }
    context.putImageData(pixels, 0, 0);
  }

  function outline(points) {
    let path = "";
    for (let at = 0; at < points.length; at += 2) path += `${at ? "L" : "M"}${points[at] + 0.5} ${points[at + 1] + 0.5}`;
    return `${path}Z`;
  }

  function rectangle(box, attributes, into) {
    const [x0, y0, x1, y1] = box;
    return element("rect", { x: x0, y: y0, width: Math.max(0, x1 - x0), height: Math.max(0, y1 - y0), ...attributes }, into);
  }

  function drawMarks() {
    const marks = by("marks");
    const [height, width] = slice().size;
    marks.setAttribute("viewBox", `0 0 ${width} ${height}`);
    marks.setAttribute("font-size", width / 36);
    marks.replaceChildren();
    by("stage").style.aspectRatio = `${width} / ${height}`;
    drawBar(marks, height, width);
    const bare = by("bare").checked;
    if (bare) return;
    const way = (document.querySelector("input[name=way]:checked") || {}).value;
    const lesions = element("g", { class: way || "" }, marks);
    for (const [lesion, index] of visible(slice().lesions)) {
      const [kind] = lesion;
      const style = { stroke: data.colors[kind], "stroke-dasharray": DASHES[kind % 3], "data-lesion": index };
      // What the run did not take for a lesion looks otherwise
      if (lesion[1] <= data.threshold) Object.assign(style, { class: "below", "stroke-dasharray": "0.1 4" });
      const outlines = drawn.content.outlines[index];
      if (way === "boxes" || !outlines.length) rectangle(lesion.slice(3), style, lesions);
      else element("path", { d: outlines.map(outline).join(""), ...style, ...(way === "fill" ? { fill: data.colors[kind] } : {}) }, lesions);
    }
    if (by("ranked").checked) {
      const group = element("g", { class: "ranked" }, marks);
      drawn.content.boxes.forEach(([, , ...box], rank) => {
        rectangle(box, {}, group);
        element("text", { x: box[0] + 2, y: box[1] + width / 36 }, group, rank + 1);
      });
    }
    if (by("moved") && by("moved").checked) {
      const group = element("g", { class: "moved" }, marks);
      for (const [x0, y0, x1, y1, weight] of drawn.content.moved || []) {
        rectangle([x0, y0, x1, y1], { "stroke-dasharray": weight < 0 ? "4 4" : "none" }, group);
        element("text", { x: x0 + 2, y: y1 - 3 }, group, (weight < 0 ? "−" : "+") + Math.abs(weight).toFixed(2));
      }
    }
  }

  function drawBar(marks, height, width) {
    const spacing = slice().spacing;
    if (!spacing) return;
    const cm = [10, 5, 2, 1].find((length) => (length * 10) / spacing[1] <= width / 3);
    if (!cm) return;
    const length = (cm * 10) / spacing[1];
    const group = element("g", { class: "bar" }, marks);
    element("path", { d: `M${width * 0.97 - length} ${height * 0.97}h${length}` }, group);
    element("text", { x: width * 0.97 - length, y: height * 0.955 }, group, `${cm} cm`);
  }

  // Area in mm² where the spacing is known, in px elsewhere
  function area(lesions, spacing) {
    const px = lesions.reduce((sum, [lesion]) => sum + lesion[2], 0);
    return spacing ? px * spacing[0] * spacing[1] : px;
  }

  const areaText = (value, spacing) => (spacing ? `${(value / 100).toFixed(2)} cm²` : `${Math.round(value)} px`);

  function drawStrip() {
    const strip = by("strip");
    const slices = scan().slices;
    const count = slices.length;
    strip.setAttribute("viewBox", `0 0 ${count} 100`);
    strip.replaceChildren();
    // One unit for all bars: px where a slice's spacing is not known
    const measured = slices.every((one) => one.spacing);
    const areas = slices.map((one) => {
      const lesions = visible(one.lesions);
      const spacing = measured && one.spacing;
      return data.lesionClasses.map((_, kind) => area(lesions.filter(([lesion]) => lesion[0] === kind), spacing));
    });
    const most = Math.max(0, ...areas.map((its) => its.reduce((sum, value) => sum + value, 0)));
    areas.forEach((its, index) => {
      let base = 100;
      its.forEach((value, kind) => {
        const height = most ? (value / most) * 55 : 0;
        base -= height;
        if (height) element("rect", { x: index, y: base, width: 1, height, fill: data.colors[kind] }, strip);
      });
    });
    if (by("most")) by("most").textContent = areaText(most, measured);
    data.classes.forEach((_, kind) => {
      const points = slices.map((one, index) => (one.scores.length ? `${index + 0.5} ${96 - one.scores[kind] * 92}` : null));
      const line = points.filter(Boolean);
      const d = line.length > 1 ? `M${line.join("L")}` : line.length ? `M0 ${line[0].split(" ")[1]}h1` : "";
      element("path", { d, class: `class-${kind % 8}` }, strip);
    });
    element("path", { class: "now", id: "now" }, strip);
    moveCursor();
  }

  function moveCursor() {
    by("now").setAttribute("d", `M${shown.slice + 0.5} 0V100`);
  }

  function tell() {
    const one = slice();
    const count = scan().slices.length;
    const at = one.z === null ? "" : `, z ${one.z.toFixed(1)} mm`;
    const where = `slice ${shown.slice + 1} of ${count}${at}`;
    by("where").textContent = where;
    by("counted").textContent = scan().counted ? `For the patient ${scan().counted}.` : "";
    by("slice").max = count;
    by("slice").value = shown.slice + 1;
    by("slice").setAttribute("aria-valuetext", where);
    for (const side of ["right", "left"]) by(side).hidden = !scan().upright;
    const words = [];
    if (one.pred) words.push(`Called ${one.pred}.`);
    if (data.lesionClasses.length) {
      const lesions = visible(one.lesions);
      const kinds = data.lesionClasses
        .map((name, kind) => [name, lesions.filter(([lesion]) => lesion[0] === kind)])
        .filter(([, its]) => its.length)
        .map(([name, its]) => `${its.length} ${name}, ${areaText(area(its, one.spacing), one.spacing)}`);
      const below = one.lesions.length - lesions.length;
      words.push(kinds.length ? `Shown: ${kinds.join("; ")}.` : "No lesion shown.");
      if (below) words.push(`${below} more not shown, by score or class.`);
    }
    if (!scan().upright) words.push("The sides of the patient are not stated.");
    words.push(...one.problems.map((problem) => `Problem: ${problem}.`));
    by("words").textContent = words.join(" ");
    by("image").setAttribute("aria-label", `CT slice, ${where}. ${words.join(" ")}`);
    by("file").textContent = one.file;
    if (by("scores")) {
      [...by("scores").tBodies[0].rows].forEach((row, kind) => {
        row.cells[1].textContent = one.scores.length ? one.scores[kind].toFixed(3) : "–";
        row.cells[2].textContent = scan().scores.length ? scan().scores[kind].toFixed(3) : "–";
      });
    }
  }

  async function show() {
    tell();
    moveCursor();
    const asked = `${shown.scan}-${shown.slice}`;
    const still = () => asked === `${shown.scan}-${shown.slice}`;
    const found = picture(shown.scan, shown.slice);
    if (!found) {
      // The file is still being read
      setTimeout(() => still() && show(), 50);
      return;
    }
    await found.ready;
    if (!still()) return;
    drawn = found;
    drawPicture();
    drawMarks();
    by("stage").dataset.shown = asked;
    for (const near of [shown.slice + 1, shown.slice - 1]) if (near >= 0 && near < scan().slices.length) picture(shown.scan, near);
  }

  // Marks and grey levels anew, once the picture is that of the slice
  const redraw = () => drawn && drawn.key === `${shown.scan}-${shown.slice}` && (drawPicture(), drawMarks());

  function go(index) {
    const next = Math.min(Math.max(index, 0), scan().slices.length - 1);
    if (next === shown.slice) return;
    shown.slice = next;
    show();
  }

  const again = () => {
    tell();
    drawStrip();
    redraw();
  };

  const STEPS = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.body.classList.contains("large")) return enlarge(false);
    const asks = event.target.closest("input, select, textarea, button, summary, a");
    if (asks || event.ctrlKey || event.metaKey || event.altKey || !(event.key in STEPS)) return undefined;
    // Keys scroll the page unless the picture was asked for
    if (!event.target.closest("#stage") && !document.body.classList.contains("large")) return undefined;
    event.preventDefault();
    return go(shown.slice + STEPS[event.key]);
  });

  let turned = 0;
  by("stage").addEventListener(
    "wheel",
    (event) => {
      if (event.ctrlKey) return;
      event.preventDefault();
      turned += event.deltaMode ? event.deltaY * 30 : event.deltaY;
      const steps = Math.trunc(turned / 30);
      turned -= steps * 30;
      if (steps) go(shown.slice - Math.sign(steps) * Math.min(Math.abs(steps), 3));
    },
    { passive: false },
  );

  let touched = null;
  by("stage").addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse") touched = { y: event.clientY, slice: shown.slice };
  });
  by("stage").addEventListener("pointermove", (event) => {
    if (touched) go(touched.slice + Math.round((touched.y - event.clientY) / 12));
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) by("stage").addEventListener(end, () => (touched = null));

  function choose(event) {
    const { left, width } = by("strip").getBoundingClientRect();
    go(Math.floor(((event.clientX - left) / width) * scan().slices.length));
  }
  by("strip").addEventListener("pointerdown", (event) => {
    by("strip").setPointerCapture(event.pointerId);
    choose(event);
  });
  by("strip").addEventListener("pointermove", (event) => event.buttons && choose(event));

  function enlarge(on) {
    document.body.classList.toggle("large", on);
    by("enlarge").setAttribute("aria-pressed", on);
    by("enlarge").textContent = on ? "Back" : "Enlarge";
    // What lies behind is not reached
    for (const one of document.querySelectorAll("header, footer, #panel, .skip")) one.inert = on;
    by("stage").focus();
  }

  by("slice").addEventListener("input", (event) => go(Number(event.target.value) - 1));
  by("previous").addEventListener("click", () => go(shown.slice - 1));
  by("next").addEventListener("click", () => go(shown.slice + 1));
  by("enlarge").addEventListener("click", () => enlarge(!document.body.classList.contains("large")));
  by("window").addEventListener("change", redraw);
  for (const box of document.querySelectorAll(".lesion-class")) box.addEventListener("change", again);
  for (const id of ["ranked", "moved", "bare"]) if (by(id)) by(id).addEventListener("change", redraw);
  for (const radio of document.querySelectorAll("input[name=way]")) radio.addEventListener("change", redraw);
  if (by("threshold")) {
    by("threshold").addEventListener("input", () => {
      least = Number(by("threshold").value);
      by("threshold-value").textContent = least.toFixed(2);
      again();
    });
  }
  if (by("scan")) {
    by("scan").value = shown.scan;
    by("scan").addEventListener("change", () => {
      shown.scan = Number(by("scan").value);
      shown.slice = Math.floor(scan().slices.length / 2);
      drawStrip();
      show();
    });
  }
  drawStrip();
  show();
})();

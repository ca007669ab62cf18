"use strict";
// The review page. All input comes from the data elements and is inserted as text, never as markup.

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const column = Object.fromEntries(data.columns.map((name, place) => [name, place]));
const rows = data.rows; // most anomalous first; `i` below is an index into it
const value = (i, name) => rows[i][column[name]] ?? null;
const ANOMALOUS = "anomalous", NORMAL = "normal";
const LOW = 0.1; // smallest score of the axis; lower ones lie at its left edge

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "line", "text"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, each] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), each);
    else if (each !== null && each !== false) element.setAttribute(key, each === true ? "" : each);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const count = (n) => n.toLocaleString("en");
const files = (n) => `${count(n)} ${n === 1 ? "file" : "files"}`;
const short = (number) => (number === null ? "–" : String(Number(number.toPrecision(number < 0.1 ? 2 : 3))));
const fixed = (number) => (number < 0.095 ? number.toPrecision(1) : number.toFixed(number < 9.995 ? 2 : 1));
const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** Index of the first element that is not below `wanted`, in an ascending array. */
function firstFrom(ascending, wanted) {
  let low = 0, high = ascending.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ascending[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

// ---- state, and what of it is stored --------------------------------------------------------------------------------

const memory = {
  key: `anomaly-report:${data.digest}`,
  read(key) {
    try { return localStorage.getItem(key); } catch { return null; }
  },
  /** Returns false if the browser stores nothing for file: pages. */
  write(key, text) {
    try { localStorage.setItem(key, text); return true; } catch { return false; }
  },
};
const decisions = new Map(Object.entries(JSON.parse(memory.read(memory.key) ?? "{}"))); // path → label
const regionMemory = `anomaly-report-regions:${data.digest}:${data.regionThreshold}:${data.minArea}`; // what numbers depend on
const regionKey = (i, number) => `${number}:${value(i, "path")}`;
const regionDecisions = new Map(Object.entries(JSON.parse(memory.read(regionMemory) ?? "{}"))); // regionKey → label
const undoable = []; // [index, label before, number of the region or 0]
const state = { threshold: data.threshold, view: [], current: null, descending: true, overlays: true, turned: new Set() };

// ---- the batch and the threshold ----------------------------------------------------------------------------------

const ascendingScores = rows.map((row) => row[column.score]).reverse();
const atOrAbove = (ascending, threshold) => ascending.length - firstFrom(ascending, threshold);
const isFlagged = (i) => value(i, "score") >= state.threshold;

/** Expected normal images at or above the threshold: its conformal p-value times the estimated number of normal images. */
function expectedFalseAlarms(threshold) {
  if (!data.normals.length) return null;
  const p = (1 + atOrAbove(data.normals, threshold)) / (data.normals.length + 1);
  return Math.min(p * data.normalShare * rows.length, atOrAbove(ascendingScores, threshold));
}

function inWords(expected) {
  if (expected === null) return "";
  if (expected >= 9.5) return `expect about ${count(Math.round(expected))} of them to be normal`;
  return `expect about ${expected.toFixed(1)} of them to be normal`;
}

function scaleWords(name) {
  if (/^\d+$/.test(name)) return `${name} px detail`;
  return { image: "whole image", small: "small copy" }[name] ?? name.replaceAll("_", " ");
}

function tile(number, text, detail, kind = "") {
  return make("div", { class: `tile ${kind}` }, make("b", {}, number), make("span", {}, text),
    make("span", { class: "faint" }, detail));
}

function showVerdict() {
  const verdict = data.verdict, percent = (share) => Math.round(100 * share);
  const flagged = atOrAbove(ascendingScores, state.threshold);
  const tiles = [
    tile(files(rows.length + data.unreadable.length), "in the batch", `${count(data.unreadable.length)} unreadable`),
    tile(count(flagged), "at or above the threshold", flagged ? inWords(expectedFalseAlarms(state.threshold)) : "nothing flagged"),
  ];
  if (verdict && verdict.anomaly_share !== null) {
    tiles.push(tile(`≈ ${percent(verdict.anomaly_share)} %`, "of the batch anomalous (estimate)",
      `95 %: ${percent(verdict.anomaly_share_low)} to ${percent(verdict.anomaly_share_high)} %`));
    tiles.push(verdict.drift
      ? tile("Drift", verdict.drift_nearer ? "nearer to the normal images than new images should be"
        : "the batch as a whole differs from the normal images", `largest at: ${scaleWords(verdict.drift_scale)}`, "warning")
      : tile("No drift", "apart from anomalies, distributed as the normal images", "same camera, light and focus"));
  } else if (verdict) {
    tiles.push(tile("–", "share of anomalies, drift", "too few images for an estimate"));
  }
  $("verdict").replaceChildren(...tiles);
}

function showNotes() {
  const notes = [];
  const pictured = data.pictures - data.missing;
  if (data.missing) notes.push(["warning", `${files(data.missing)} can no longer be read: shown without picture.`]);
  if (data.changed) notes.push(["warning", `${files(data.changed)} would score differently now: the files changed, ` +
    "or the table was made with another model."]);
  if (rows.length > data.pictures) notes.push(["", `Pictures: the ${count(pictured)} most anomalous of ` +
    `${files(rows.length)}; the others are listed without.`]);
  if (!data.model) notes.push(["", "No model: the table has no p-values, so there are no heat maps, no normal images " +
    "to compare with; the score says how rare an image is."]);
  $("notes").replaceChildren(...notes.map(([kind, text]) => make("li", { class: kind }, text)));
  $("table").textContent = data.table;
  $("provenance").textContent = data.model
    ? `scored with ${data.model}, ${count(data.normals.length)} held-out normal images for comparison` : "";
  document.title = `anomaly report: ${data.table}`;
}

const LABEL = 62; // half the width of the threshold label, pixels
const chart = { width: 0, height: 196, base: 122, top: 34, bottom: 164 };

/** Position of a score on the logarithmic axis, in pixels. */
function across(score) {
  const share = Math.log(Math.max(score, chart.low) / chart.low) / Math.log(chart.high / chart.low);
  return chart.left + share * (chart.width - chart.left - chart.right);
}

function scoreAt(x) {
  const share = Math.min(1, Math.max(0, (x - chart.left) / (chart.width - chart.left - chart.right)));
  return chart.low * (chart.high / chart.low) ** share;
}

function drawDistribution() {
  chart.width = $("distribution").clientWidth;
  const lowest = Math.min(ascendingScores[0] ?? 1, data.normals[0] ?? 1, 0.5);
  const highest = Math.max(ascendingScores.at(-1) ?? 1, data.normals.at(-1) ?? 1, data.threshold, 1.5);
  Object.assign(chart, { low: Math.max(LOW, lowest / 1.05), high: highest * 1.12, left: 8, right: 14 });
  const svg = make("svg", { viewBox: `0 0 ${chart.width} ${chart.height}`, height: chart.height, role: "group",
    "aria-label": "Histogram of the scores of this batch above, of held-out normal images below, with the threshold" });
  const bins = Math.max(20, Math.min(90, Math.round(chart.width / 13)));
  svg.append(...bars(ascendingScores, bins, "batch"), ...bars(data.normals, bins, "normal"), ...axis());
  svg.append(make("text", { x: chart.left, y: 14 }, `this batch, ${count(rows.length)} images`));
  if (data.normals.length) {
    svg.append(make("text", { x: chart.left, y: chart.height - 4 }, `${count(data.normals.length)} held-out normal images`));
  }
  chart.threshold = make("g", { class: "threshold", tabindex: "0", role: "slider", "aria-label": "Threshold", "aria-valuemin": "0",
    "aria-valuemax": chart.high.toFixed(2), onkeydown: moveThresholdByKey },
    make("line", { y1: 22, y2: chart.bottom }), make("rect", { y: 4, width: 2 * LABEL, height: 22, rx: 11 }),
    make("text", { y: 19.5 }));
  svg.append(chart.threshold);
  const drag = (event) => setThreshold(rounded(scoreAt(event.clientX - svg.getBoundingClientRect().left)));
  svg.addEventListener("pointerdown", (event) => { svg.setPointerCapture(event.pointerId); drag(event); });
  svg.addEventListener("pointermove", (event) => { if (svg.hasPointerCapture(event.pointerId)) drag(event); });
  $("distribution").replaceChildren(svg);
  showThresholdLine();
}

const rounded = (score) => Number(score.toFixed(score < 10 ? 2 : 1));

/** Histogram of one group of scores, scaled to its own tallest bar: the batch upwards, normal images downwards. */
function bars(ascending, bins, kind) {
  const edge = (bin) => chart.low * (chart.high / chart.low) ** (bin / bins);
  const starts = Array.from({ length: bins + 1 }, (_, bin) => bin ? firstFrom(ascending, edge(bin)) : 0);
  const counts = starts.slice(1).map((end, bin) => end - starts[bin]);
  const tallest = Math.max(1, ...counts), room = kind === "batch" ? chart.base - chart.top : chart.bottom - chart.base - 18;
  return counts.flatMap((n, bin) => {
    if (!n) return [];
    const height = Math.max(2, (n / tallest) * room), x = across(edge(bin));
    const place = { x: x + 0.5, width: Math.max(1, across(edge(bin + 1)) - x - 1), y: kind === "batch" ? chart.base - height : chart.base + 18 };
    return [make("rect", { class: kind, ...place, height }),
      Object.assign(make("rect", { class: `${kind} hot`, ...place, height: 0 }), { bar: { ascending, start: starts[bin], end: starts[bin + 1], height } })];
  });
}

function axis() {
  const ticks = [0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500].filter((t) => t >= chart.low && t <= chart.high);
  const limit = across(1), nextTick = ticks.find((tick) => tick > 1);
  const words = nextTick === undefined || across(nextTick) - limit > 120 ? "1 limit of normal" : "1";
  return [
    make("line", { class: "axis", x1: 0, x2: chart.width, y1: chart.base + 0.5, y2: chart.base + 0.5 }),
    make("line", { class: "limit", x1: limit, x2: limit, y1: 28, y2: chart.bottom }),
    ...ticks.map((tick) => make("text", { y: chart.base + 13,
      ...(tick === 1 && words !== "1" ? { x: limit - 4 } : { x: across(tick), "text-anchor": "middle" }) },
      tick === 1 ? words : String(tick))),
  ];
}

function showThresholdLine() {
  const x = across(state.threshold), label = Math.min(chart.width - LABEL - 1, Math.max(LABEL + 1, x));
  chart.threshold.querySelector("line").setAttribute("x1", x);
  chart.threshold.querySelector("line").setAttribute("x2", x);
  chart.threshold.querySelector("rect").setAttribute("x", label - LABEL);
  chart.threshold.querySelector("text").setAttribute("x", label);
  chart.threshold.querySelector("text").textContent = `threshold ${fixed(state.threshold)}`;
  chart.threshold.setAttribute("aria-valuenow", state.threshold);
  for (const rect of $("distribution").querySelectorAll("rect.hot")) { // the part of each bar at or above the threshold
    const { ascending, start, end, height } = rect.bar;
    rect.setAttribute("height", (height * (end - Math.max(start, Math.min(end, firstFrom(ascending, state.threshold))))) / (end - start));
  }
}

function moveThresholdByKey(event) {
  const step = { ArrowLeft: -0.01, ArrowDown: -0.01, ArrowRight: 0.01, ArrowUp: 0.01, PageDown: -0.1, PageUp: 0.1 }[event.key];
  if (step === undefined) return;
  event.preventDefault();
  event.stopPropagation();
  setThreshold(rounded(state.threshold + step));
}

function setThreshold(threshold) {
  state.threshold = Math.max(0, threshold);
  if (document.activeElement !== $("threshold")) $("threshold").value = state.threshold;
  $("reset").hidden = state.threshold === data.threshold;
  const flagged = atOrAbove(ascendingScores, state.threshold);
  const words = flagged && data.normals.length ? `; ${inWords(expectedFalseAlarms(state.threshold))}` : "";
  $("counted").textContent = `${count(flagged)} of ${files(rows.length)}${words}`;
  showThresholdLine();
  showVerdict();
  if (["above", "below"].includes($("filter").value)) list();
  else for (const [i, card] of gallery.cards) showPill(card, i);
}

// ---- which images are shown, and in which order -------------------------------------------------------------------

const filters = {
  all: ["All images", () => true],
  above: ["At or above the threshold", isFlagged],
  below: ["Below the threshold", (i) => !isFlagged(i)],
  undecided: ["Undecided", (i) => !decisions.has(value(i, "path"))],
  decided: ["Decided", (i) => decisions.has(value(i, "path"))],
  normal: ["Decided normal", (i) => decisions.get(value(i, "path")) === NORMAL],
  anomalous: ["Decided anomalous", (i) => decisions.get(value(i, "path")) === ANOMALOUS],
  ...Object.fromEntries(data.scales.map((name) =>
    [`scale-${name}`, [`Above the limit of normal: ${scaleWords(name)}`, (i) => value(i, `scale_${name}`) >= 1]])),
};

function fillChoices() {
  $("filter").append(...Object.entries(filters).map(([key, [words]]) => make("option", { value: key }, words)));
  const names = ["score", "path", ...data.columns.filter((name) =>
    !["score", "path", "status", "reason", "flagged"].includes(name) && rows.some((row) => row[column[name]] !== null))];
  const words = (name) => (name.startsWith("scale_") ? scaleWords(name.slice(6)) : name.replaceAll("_", " "));
  $("sort").append(...names.map((name) => make("option", { value: name }, words(name))));
}

/** Filter and sort the images; the current one stays current if it is still listed. */
function list() {
  const chosen = filters[$("filter").value][1], wanted = $("search").value.toLowerCase(), by = column[$("sort").value];
  const view = [];
  for (let i = 0; i < rows.length; i++) {
    if (chosen(i) && (!wanted || value(i, "path").toLowerCase().includes(wanted))) view.push(i);
  }
  const direction = state.descending ? -1 : 1;
  if ($("sort").value !== "score" || !state.descending) {
    view.sort((i, j) => {
      const a = rows[i][by] ?? null, b = rows[j][by] ?? null;
      if (a === b) return i - j;
      if (a === null || b === null) return a === null ? 1 : -1; // missing values last
      return (a < b ? -1 : 1) * direction;
    });
  }
  state.view = view;
  $("shown").textContent = view.length === rows.length ? `${files(rows.length)}` : `${files(view.length)} of ${count(rows.length)}`;
  if (!view.length) $("shown").textContent = "No image matches.";
  gallery.layOut();
}

// ---- the gallery: only visible cards exist ------------------------------------------------------------------------

const gallery = {
  cards: new Map(), // index into rows → element
  columns: 1,
  height: 0, // of a card and the gap below it, pixels

  layOut() {
    const element = $("gallery"), gap = 14, narrowest = 264;
    this.columns = Math.max(1, Math.floor((element.clientWidth + gap) / (narrowest + gap)));
    element.style.gridTemplateColumns = `repeat(${this.columns}, minmax(0, 1fr))`;
    this.show(true);
  },

  /** Create the cards near the viewport, remove the others and pad for them. */
  show(anew = false) {
    const element = $("gallery"), view = state.view;
    if ($("images").hidden) return;
    if (!this.height && view.length) this.measure();
    const lines = Math.ceil(view.length / this.columns), above = -element.getBoundingClientRect().top;
    const seen = Math.ceil(innerHeight / (this.height || 1));
    const first = Math.min(Math.max(0, Math.floor(above / (this.height || 1)) - 1), Math.max(0, lines - seen));
    const last = Math.min(lines, first + seen + 3);
    if (!anew && first === this.first && last === this.last) return;
    [this.first, this.last] = [first, last];
    const wanted = view.slice(first * this.columns, last * this.columns);
    const kept = new Map(wanted.map((i) => [i, this.cards.get(i) ?? makeCard(i)]));
    const focused = document.activeElement;
    for (const [i, card] of this.cards) if (!kept.has(i)) card.remove();
    [...kept.values()].forEach((card, place) => {
      if (element.children[place] !== card) element.insertBefore(card, element.children[place] ?? null);
    });
    if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
    this.cards = kept;
    element.style.paddingTop = `${first * this.height}px`;
    element.style.paddingBottom = `${(lines - last) * this.height}px`;
    this.fill();
  },

  measure() {
    const card = makeCard(state.view[0]);
    $("gallery").append(card);
    this.height = card.getBoundingClientRect().height + 14;
    card.remove();
  },

  /** Fill the cards whose thumbnails have arrived; those far down arrive while the page is still loading. */
  fill() {
    let waiting = false;
    for (const [i, card] of this.cards) waiting = showPicture(card, i) || waiting;
    if (waiting) setTimeout(() => this.fill(), 100);
  },

  /** Scroll a position of the view into the viewport. */
  reveal(place) {
    const top = $("gallery").getBoundingClientRect().top + scrollY + Math.floor(place / this.columns) * this.height;
    const tools = $("tools"), hidden = getComputedStyle(tools).position === "sticky" ? tools.offsetHeight : 0;
    if (top < scrollY + hidden) scrollTo(0, top - hidden - 8);
    else if (top + this.height > scrollY + innerHeight) scrollTo(0, top + this.height - innerHeight + 8);
    this.show();
  },
};

function makeCard(i) {
  const name = value(i, "path").split("/").at(-1);
  const decide = (label) => make("button", { type: "button", class: label, onclick: () => decideAt(i, label, true),
    "aria-keyshortcuts": label === NORMAL ? "y" : "n" }, label === NORMAL ? "Normal " : "Anomalous ",
    make("kbd", {}, label === NORMAL ? "y" : "n"));
  const p = value(i, "p_value"), q = value(i, "q_value");
  const card = make("li", { class: "card", tabindex: i === state.current ? "0" : "-1", "aria-label": `${name}, score ${fixed(value(i, "score"))}`,
    onfocusin: () => { if (state.current !== i) choose(i); }, onclick: () => choose(i) },
    make("div", { class: "frame" }),
    make("span", { class: "place", title: "rank by score" }, String(i + 1)),
    make("div", { class: "facts" },
      make("div", { class: "row" }, make("b", {}, fixed(value(i, "score"))),
        make("span", { class: "faint" }, sortedBy(i) ?? (p === null ? "" : `p ${short(p)} · q ${short(q)}`)),
        make("span", { class: "pill" })),
      make("div", { class: "why" }, makeScales(i)),
      make("div", { class: "path", title: value(i, "path") }, linkTo(value(i, "path"))),
      data.model ? make("div", { class: "regions", role: "group", "aria-label": "Regions" }) : null,
      make("div", { class: "decide" }, decide(NORMAL), decide(ANOMALOUS))));
  showPill(card, i);
  showDecision(card, i);
  card.classList.toggle("current", i === state.current);
  return card;
}

/** The value sorted by, unless the card shows it anyway. */
function sortedBy(i) {
  const name = $("sort").value;
  if (["score", "path", "p_value", "q_value"].includes(name) || name.startsWith("scale_")) return null;
  return `${name.replaceAll("_", " ")} ${short(value(i, name))}`;
}

function makeScales(i) {
  const full = data.fullScale;
  return make("dl", { class: "scales" }, ...data.scales.flatMap((name) => {
    const level = value(i, `scale_${name}`) ?? 0;
    return [make("dt", {}, scaleWords(name)),
      make("dd", {}, make("div", { class: `track ${level >= 1 ? "hot" : ""}` },
        make("i", { style: `width:${Math.min(100, (100 * level) / full)}%` }))),
      make("dd", { class: "number" }, fixed(level))];
  }));
}

/** A link to the file, or its path where the name cannot be written as an address. */
function linkTo(path) {
  try {
    const encoded = path.split("/").map(encodeURIComponent).join("/");
    const address = path.startsWith("/") ? encoded : `./${data.root.split("/").map(encodeURIComponent).join("/")}/${encoded}`;
    return make("a", { href: address, target: "_blank", rel: "noopener", tabindex: "-1" }, path);
  } catch { // a lone surrogate: a name that is not UTF-8
    return make("span", {}, path);
  }
}

function showPill(card, i) {
  const pill = card.querySelector(".pill");
  pill.textContent = isFlagged(i) ? "flagged" : "";
  pill.className = `pill ${isFlagged(i) ? "hot" : ""}`;
}

function showDecision(card, i) {
  const label = decisions.get(value(i, "path"));
  for (const each of [NORMAL, ANOMALOUS]) card.querySelector(`.decide .${each}`).setAttribute("aria-pressed", label === each);
}

// ---- thumbnails and heat maps -------------------------------------------------------------------------------------

const tints = bytesOf(data.tints); // RGBA per level, as in `anomaly heatmap`

function readPicture(i) {
  const element = $(`picture-${i}`);
  return element ? JSON.parse(element.textContent) : null;
}

/** Returns true while the thumbnail has not arrived. */
function showPicture(card, i) {
  const frame = card.querySelector(".frame");
  if (frame.childElementCount) return false;
  const picture = readPicture(i);
  if (!picture || picture.missing) {
    if (!picture && i < data.pictures && document.readyState === "loading") return true;
    frame.append(make("p", { class: "none" }, picture ? `no picture: ${picture.missing}`
      : `no picture: only the ${count(data.pictures)} most anomalous have one`));
    return false;
  }
  if (picture.evidence) card.querySelector(".why").append(makeEvidence(picture.evidence));
  const name = value(i, "path"), width = value(i, "width"), height = value(i, "height");
  const box = make("div", { class: "picture" },
    make("img", { src: `data:image/webp;base64,${picture.image}`, alt: name, decoding: "async" }));
  if (width && height) box.style.cssText = `aspect-ratio:${width}/${height};width:min(100%, var(--picture)*${width / height})`;
  else Object.assign(box.style, { width: "100%", height: "100%" });
  frame.append(box);
  if (picture.heat) {
    box.append(make("canvas", { "aria-hidden": "true" }));
    card.append(make("button", { type: "button", class: "heat", title: "Heat map on or off (o)", tabindex: "-1",
      onclick: () => turnOverlay(i) }, "heat map"));
    card.heat = picture;
  }
  const frameOf = ([x, y, w, h], attributes) => make("div", { class: "region", ...attributes, style: `left:${(100 * x) / width}%;` +
    `top:${(100 * y) / height}%;width:${(100 * w) / width}%;height:${(100 * h) / height}%` });
  const peak = ["region_x", "region_y", "region_w", "region_h"].map((each) => value(i, each));
  const regions = picture.regions ?? [];
  if (width && height) {
    regions.forEach((region, at) => box.append(frameOf(region, { "data-region": at + 1, title: `region ${at + 1}` })));
    if (!regions.length && peak[2]) box.append(frameOf(peak, { title: "most anomalous region" }));
  }
  if (data.model) showRegions(card, i, regions);
  showOverlay(card, i);
  return false;
}

/** List the regions of an image: a button each, which decides on that region alone. */
function showRegions(card, i, regions) {
  const list = card.querySelector(".regions");
  const point = (number, on) => card.querySelector(`.region[data-region="${number}"]`)?.classList.toggle("pointed", on);
  list.replaceChildren(...regions.map(([x, y, w, h, , peak, scale], at) => {
    const number = at + 1;
    return make("button", { type: "button", class: "chip", "data-region": number, tabindex: "-1",
      title: `region ${number}: ${w} × ${h} px at ${x}, ${y}; peak ${fixed(peak)}, mostly ${scaleWords(scale)}. ` +
        "Click: anomalous, normal, undecided",
      onclick: () => decideRegion(i, number, nextLabel(i, number)),
      onfocus: () => point(number, true), onblur: () => point(number, false),
      onpointerenter: () => point(number, true), onpointerleave: () => point(number, false) });
  }));
  if (!regions.length) list.append(make("span", { class: "faint" }, "no region above the limit"));
  else list.prepend(make("span", { class: "faint" }, regions.length === 1 ? "1 region" : `${count(regions.length)} regions`));
  showRegionDecisions(card, i, regions);
}

function showRegionDecisions(card, i, regions = readPicture(i)?.regions ?? []) {
  regions.forEach((region, at) => {
    const number = at + 1, label = regionDecisions.get(regionKey(i, number));
    for (const each of card.querySelectorAll(`[data-region="${number}"]`)) {
      each.classList.toggle("anomalous", label === ANOMALOUS);
      each.classList.toggle("normal", label === NORMAL);
    }
    const mark = { [ANOMALOUS]: " ✗", [NORMAL]: " ✓" }[label] ?? "";
    const chip = card.querySelector(`.chip[data-region="${number}"]`);
    chip.textContent = `${number} · ${fixed(region[5])}${mark}`;
    chip.setAttribute("aria-label", `region ${number}, peak ${fixed(region[5])}, ${label ?? "undecided"}`);
  });
}

/** The most anomalous patch beside the nearest normal one. */
function makeEvidence(evidence) {
  const figure = (picture, words) => make("figure", {},
    make("img", { src: `data:image/webp;base64,${picture}`, alt: words, decoding: "async" }), make("figcaption", {}, words));
  return make("div", { class: "evidence", title: `at ${scaleWords(evidence.scale)}: the most anomalous patch and the nearest patch of a normal image` },
    figure(evidence.anomalous, "anomalous patch"), figure(evidence.normal, "nearest normal"));
}

const overlayIsOn = (i) => state.overlays !== state.turned.has(i);

function showOverlay(card, i) {
  const canvas = card.querySelector("canvas"), on = overlayIsOn(i);
  if (!canvas) return;
  if (on && !canvas.drawn) drawHeat(canvas, card.heat, value(i, "width") / value(i, "height"));
  canvas.drawn ||= on;
  canvas.hidden = !on;
  card.querySelector(".heat").setAttribute("aria-pressed", on);
}

/** Interpolate the map bilinearly within regions and outside, colour it and outline the regions. */
function drawHeat(canvas, picture, aspect) {
  const [h, w] = picture.cells, cells = bytesOf(picture.heat), side = 320;
  const W = Math.round(aspect >= 1 ? side : side * aspect) || 1, H = Math.round(aspect >= 1 ? side / aspect : side) || 1;
  const levels = new Float32Array(W * H), limit = 255 / data.fullScale;
  const cellAt = (pixel, length, cellCount) => Math.floor(((pixel + 0.5) * cellCount) / length);
  const weights = (length, cellCount) => Array.from({ length }, (_, at) => {
    const place = Math.min(cellCount - 1, Math.max(0, ((at + 0.5) * cellCount) / length - 0.5)), cell = Math.floor(place);
    return [cell, Math.min(cellCount - 1, cell + 1), place - cell];
  });
  const columns = weights(W, w);
  weights(H, h).forEach(([top, bottom, down], y) => columns.forEach(([left, right, over], x) => {
    const inside = cells[cellAt(y, H, h) * w + cellAt(x, W, w)] >= limit; // a region, as tables and masks have it
    const upper = cells[top * w + left] * (1 - over) + cells[top * w + right] * over;
    const lower = cells[bottom * w + left] * (1 - over) + cells[bottom * w + right] * over;
    const level = upper * (1 - down) + lower * down;
    levels[y * W + x] = inside ? Math.max(limit, level) : Math.min(limit - 1, level);
  }));
  const image = new ImageData(W, H);
  for (let at = 0; at < levels.length; at++) {
    const inside = levels[at] >= limit, x = at % W;
    const edge = !inside && ((x > 0 && levels[at - 1] >= limit) || (x < W - 1 && levels[at + 1] >= limit) ||
      levels[at - W] >= limit || levels[at + W] >= limit);
    const tint = 4 * Math.round(levels[at]);
    image.data.set(edge ? [255, 255, 255, 230] : tints.subarray(tint, tint + 4), 4 * at);
  }
  Object.assign(canvas, { width: W, height: H });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function turnOverlay(i) {
  if (!state.turned.delete(i)) state.turned.add(i);
  if (gallery.cards.has(i)) showOverlay(gallery.cards.get(i), i);
}

function turnAllOverlays(on) {
  state.overlays = on;
  state.turned.clear();
  $("overlays").checked = on;
  for (const [i, card] of gallery.cards) showOverlay(card, i);
}

// ---- review -------------------------------------------------------------------------------------------------------

function choose(i) {
  const before = gallery.cards.get(state.current), after = gallery.cards.get(i);
  before?.classList.remove("current");
  before?.setAttribute("tabindex", "-1");
  state.current = i;
  after?.classList.add("current");
  after?.setAttribute("tabindex", "0");
}

function goTo(place) {
  if (!state.view.length) return;
  const bounded = Math.min(state.view.length - 1, Math.max(0, place)), i = state.view[bounded];
  gallery.reveal(bounded);
  choose(i);
  gallery.cards.get(i)?.focus({ preventScroll: true });
}

const currentPlace = () => state.view.indexOf(state.current);

function record(path, label) {
  if (label) decisions.set(path, label);
  else decisions.delete(path);
  const kept = memory.write(memory.key, JSON.stringify(Object.fromEntries(decisions)));
  showProgress(kept);
}

/** The label that a click on a region gives it: anomalous, normal, none. */
function nextLabel(i, number) {
  const before = regionDecisions.get(regionKey(i, number));
  return { [ANOMALOUS]: NORMAL, [NORMAL]: null }[before] ?? (before ? null : ANOMALOUS);
}

function recordRegion(i, number, label) {
  if (label) regionDecisions.set(regionKey(i, number), label);
  else regionDecisions.delete(regionKey(i, number));
  showProgress(memory.write(regionMemory, JSON.stringify(Object.fromEntries(regionDecisions))));
  if (gallery.cards.has(i)) showRegionDecisions(gallery.cards.get(i), i);
}

function decideRegion(i, number, label) {
  undoable.push([i, regionDecisions.get(regionKey(i, number)) ?? null, number]);
  recordRegion(i, number, label);
  announce(`${value(i, "path")}, region ${number}: ${label ?? "undecided"}`);
}

/** Select the next region of the current image; after the last one the image itself. */
function nextRegion(event) {
  if (currentPlace() < 0) goTo(0);
  const card = gallery.cards.get(state.current), chips = [...(card?.querySelectorAll(".chip") ?? [])];
  const next = chips[chips.indexOf(event.target) + 1];
  (next ?? card)?.focus({ preventScroll: true });
}

/** Decide on the region that is selected, and go on to the next. */
function decideSelected(event, label) {
  if (!event.target.matches(".chip")) return decideCurrent(label);
  decideRegion(state.current, Number(event.target.dataset.region), label);
  nextRegion(event);
}

function showProgress(kept = true) {
  const n = decisions.size, m = regionDecisions.size, regions = `${count(m)} ${m === 1 ? "region" : "regions"}`;
  $("progress").textContent = [n ? `${count(n)} of ${count(rows.length)} decided` : "", m ? `${regions} decided` : ""]
    .filter(Boolean).join(", ");
  $("export-regions").hidden = !m;
  $("export-regions").textContent = `Export ${regions}`;
  if (!kept) $("progress").textContent += ", not stored by this browser: export before closing";
  $("export").disabled = !n;
  $("export").textContent = n ? `Export ${count(n)} ${n === 1 ? "label" : "labels"}` : "Export labels";
}

/** Decide on an image; a second click on the same button withdraws the decision. */
function decideAt(i, label, mayTakeBack = false) {
  const path = value(i, "path"), before = decisions.get(path) ?? null;
  const after = mayTakeBack && before === label ? null : label;
  undoable.push([i, before, 0]);
  record(path, after);
  announce(`${path}: ${after ?? "undecided"}`);
  showChanged(i);
}

function showChanged(i) {
  if (["undecided", "decided", NORMAL, ANOMALOUS].includes($("filter").value)) list();
  if (gallery.cards.has(i)) showDecision(gallery.cards.get(i), i);
}

function decideCurrent(label) {
  const place = currentPlace();
  if (place < 0) return goTo(0);
  const i = state.current;
  decideAt(i, label);
  goTo(state.view[place] === i ? place + 1 : place); // if the filter removed the image, the next one has its position
}

function undo() {
  const last = undoable.pop();
  if (!last) return announce("nothing to undo");
  const [i, before, number] = last;
  if (number) recordRegion(i, number, before);
  else {
    record(value(i, "path"), before);
    showChanged(i);
  }
  announce(`${value(i, "path")}${number ? `, region ${number}` : ""}: ${before ?? "undecided"} again`);
  if (state.view.includes(i)) goTo(state.view.indexOf(i));
}

const announce = (text) => { $("announcement").textContent = text; };

const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

/** Save a text as CSV. Bytes of a name that is not UTF-8 are lone surrogates here and become those bytes again. */
function save(text, name) {
  const parts = text.split(/([\udc80-\udcff](?<![\ud800-\udbff].))/)
    .map((part, place) => (place % 2 ? Uint8Array.of(part.charCodeAt(0) - 0xdc00) : part));
  const address = URL.createObjectURL(new Blob(parts, { type: "text/csv" }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
  announce(`${name} saved`);
}

function exportLabels() {
  const lines = rows.map((_, i) => value(i, "path")).filter((path) => decisions.has(path))
    .map((path) => `${quoted(path)},${decisions.get(path)}\n`);
  save(`path,label\n${lines.join("")}`, "labels.csv");
}

/** Save the decided regions; their numbers are those of `anomaly score --regions`. */
function exportRegions() {
  const lines = [];
  for (let i = 0; i < data.pictures; i++) {
    (readPicture(i)?.regions ?? []).forEach((region, at) => {
      const label = regionDecisions.get(regionKey(i, at + 1));
      if (label) lines.push(`${[quoted(value(i, "path")), at + 1, ...region, label].join(",")}\n`);
    });
  }
  save(`path,region,x,y,w,h,area,peak,scale,label\n${lines.join("")}`, "region_labels.csv");
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("legend").open) return;
  if (event.target.matches("input:not([type=checkbox]), select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const inGallery = $("gallery").contains(event.target), move = (by) => () => goTo(currentPlace() < 0 ? 0 : currentPlace() + by);
  const actions = {
    j: move(1), k: move(-1), u: undo,
    y: () => decideSelected(event, NORMAL), n: () => decideSelected(event, ANOMALOUS), r: () => nextRegion(event),
    o: () => { if (state.current !== null) turnOverlay(state.current); }, O: () => turnAllOverlays(!state.overlays),
    "/": () => $("search").focus(), "?": () => $("legend").showModal(),
    ...(inGallery ? { ArrowRight: move(1), ArrowLeft: move(-1), ArrowDown: move(gallery.columns), ArrowUp: move(-gallery.columns) } : {}),
  };
  const action = $("images").hidden && event.key !== "?" ? undefined : actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

// ---- duplicates and unreadable files ------------------------------------------------------------------------------

const MOST_LISTED = 500;

function showUnreadable() {
  const listed = data.unreadable.slice(0, MOST_LISTED);
  $("unreadable").replaceChildren(make("table", {},
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "File"), make("th", { scope: "col" }, "Reason"))),
    make("tbody", {}, ...listed.map(([path, reason]) => make("tr", {}, make("td", {}, linkTo(path)), make("td", {}, reason))))));
  rest($("unreadable"), data.unreadable.length - listed.length, "file");
}

function rest(section, left, noun) {
  if (left > 0) section.append(make("p", { class: "faint" }, `and ${count(left)} more ${noun}s, all in ${data.table}`));
}

function copyGroups() {
  const groups = new Map();
  rows.forEach((_, i) => {
    const group = value(i, "duplicate_group");
    if (group) groups.set(group, [...(groups.get(group) ?? []), i]);
  });
  return [...groups.values()].filter((members) => members.length > 1);
}

function showCopies(groups) {
  const member = (i) => {
    const picture = readPicture(i);
    return make("li", {}, picture?.image
      ? make("img", { src: `data:image/webp;base64,${picture.image}`, alt: "", loading: "lazy", decoding: "async" })
      : make("div", { class: "none" }), linkTo(value(i, "path")), make("div", { class: "faint" }, `score ${fixed(value(i, "score"))}`));
  };
  const listed = groups.slice(0, MOST_LISTED / 5);
  $("copies").replaceChildren(make("p", { class: "faint" }, "Copies and near-duplicates."),
    ...listed.map((members) => make("div", { class: "group" },
      make("div", {}, `${files(members.length)} with the same content`), make("ul", {}, ...members.slice(0, 24).map(member)))));
  rest($("copies"), groups.length - listed.length, "group");
}

function prepareTabs() {
  const groups = copyGroups();
  const tabs = { images: rows.length, copies: groups.length, unreadable: data.unreadable.length };
  const names = Object.keys(tabs).filter((name) => name === "images" || tabs[name]);
  const open = (chosen) => {
    for (const name of Object.keys(tabs)) {
      $(name).hidden = name !== chosen;
      $(`tab-${name}`).setAttribute("aria-selected", name === chosen);
      $(`tab-${name}`).tabIndex = name === chosen ? 0 : -1;
    }
    if (chosen === "images") gallery.layOut();
    if (chosen === "copies") showCopies(groups);
    if (chosen === "unreadable") showUnreadable();
  };
  for (const name of Object.keys(tabs)) {
    const tab = $(`tab-${name}`);
    tab.hidden = !names.includes(name);
    tab.append(` ${count(tabs[name])}${name === "copies" ? (tabs[name] === 1 ? " group" : " groups") : ""}`);
    tab.addEventListener("click", () => open(name));
    tab.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      const other = names[(names.indexOf(name) + by + names.length) % names.length];
      open(other);
      $(`tab-${other}`).focus();
    });
  }
  open("images");
}

// ---- theme and start ----------------------------------------------------------------------------------------------

function prepareTheme() {
  const key = "anomaly-report-theme", dark = matchMedia("(prefers-color-scheme: dark)");
  const show = (theme) => {
    document.documentElement.style.colorScheme = theme ?? "light dark";
    $("theme").textContent = (theme ?? (dark.matches ? "dark" : "light")) === "dark" ? "Light" : "Dark";
  };
  show(memory.read(key));
  $("theme").addEventListener("click", () => {
    const theme = $("theme").textContent.toLowerCase();
    memory.write(key, theme);
    show(theme);
  });
  dark.addEventListener("change", () => show(memory.read(key)));
}

function prepareColours() {
  const steps = [0, 32, 64, 96, 128, 160, 192, 224, 255].map((level) =>
    `rgb(${tints.subarray(4 * level, 4 * level + 3).join(" ")} / ${tints[4 * level + 3] / 255})`);
  $("colours").style.background = `linear-gradient(to right, ${steps.join(", ")}), #888`;
}

function start() {
  prepareTheme();
  showNotes();
  fillChoices();
  prepareColours();
  drawDistribution();
  prepareTabs();
  list();
  setThreshold(data.threshold);
  showProgress();
  $("threshold").value = data.threshold;
  $("threshold").addEventListener("input", () => { if ($("threshold").value !== "") setThreshold(Number($("threshold").value)); });
  $("threshold").addEventListener("change", () => { $("threshold").value = state.threshold; });
  $("reset").addEventListener("click", () => setThreshold(data.threshold));
  $("search").addEventListener("input", list);
  $("filter").addEventListener("change", list);
  $("sort").addEventListener("change", () => {
    state.descending = $("sort").value !== "path";
    $("direction").textContent = state.descending ? "↓" : "↑";
    for (const card of gallery.cards.values()) card.remove();
    gallery.cards.clear(); // cards show the value sorted by
    list();
  });
  $("direction").addEventListener("click", () => {
    state.descending = !state.descending;
    $("direction").textContent = state.descending ? "↓" : "↑";
    list();
  });
  $("overlays").addEventListener("change", () => turnAllOverlays($("overlays").checked));
  $("export").addEventListener("click", exportLabels);
  $("export-regions").addEventListener("click", exportRegions);
  $("help").addEventListener("click", () => $("legend").showModal());
  document.addEventListener("keydown", onKey);
  addEventListener("scroll", () => gallery.show(), { passive: true });
  new ResizeObserver(() => {
    if ($("distribution").clientWidth !== chart.width) drawDistribution();
    gallery.height = 0;
    gallery.layOut();
  }).observe($("images").parentElement);
}

start();

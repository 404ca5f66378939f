"use strict";
// Draws the page of a run or of a sweep from the JSON beside it. Text enters the page as text nodes only, never as HTML.
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const DARK = matchMedia("(prefers-color-scheme: dark)");
  const BLUE = DARK.matches ? "#4aa3df" : "#0072B2"; // the palette's own is too dark on black
  const OKABE_ITO = [BLUE, "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#8a8f94"];
  const SPLITS = { train: BLUE, val: "#009E73", test: "#D55E00", real: "#CC79A7", real_test: "#882D00", distilled: "#E69F00" };
  const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const NONE = "(none)";
  const FINEST = 1e-3; // of the scale of a Gram matrix: cosines are kept to 3e-5

  // ---- elements
  function make(name, attributes = {}, ...children) {
    const svg = ["svg", "path", "circle", "line", "text", "g", "title"].includes(name);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children);
    return node;
  }

  function select(label, choices, value, change) {
    const options = choices.map(([key, text]) => make("option", { value: key, selected: key === value }, text));
    return make("label", {}, label, make("select", { onchange: (event) => change(event.target.value) }, ...options));
  }

  function check(label, value, change) {
    const box = make("input", { type: "checkbox", checked: value, onchange: (event) => change(event.target.checked) });
    return make("label", { class: "check" }, box, label);
  }

  function section(title, note, ...children) {
    return make("section", {}, make("h2", {}, title), ...(note ? [make("p", { class: "muted" }, note)] : []), ...children);
  }

  // ---- values
  const isShare = (metric) => /accuracy|agree/.test(metric);
  const known = (value) => typeof value === "number" && Number.isFinite(value);

  function number(metric, value) {
    if (!known(value)) return "-";
    return isShare(metric) ? (100 * value).toFixed(2) + " %" : String(Number(value.toPrecision(3)));
  }

  const setting = (job, key) => job.overrides[key] ?? "(default)";
  const numeric = (values) => values.every((value) => value === "(default)" || (value.trim() !== "" && known(Number(value))));

  function settings(jobs, key) {
    const values = [...new Set(jobs.map((job) => setting(job, key)))];
    const order = numeric(values) ? (a, b) => Number(a) - Number(b) : (a, b) => a.localeCompare(b, "en", { numeric: true });
    return values.sort((a, b) => (b === "(default)") - (a === "(default)") || order(a, b));
  }

  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  function curve(job, metric) {
    const found = job.curves[metric];
    return found ? { x: DATA.epochs[found[0]], y: found[1] } : null;
  }

  // ---- colours
  function viridis(share) {
    const at = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1), low = Math.min(Math.floor(at), VIRIDIS.length - 2);
    return VIRIDIS[low].map((part, channel) => Math.round(part + (at - low) * (VIRIDIS[low + 1][channel] - part)));
  }
  const css = (rgb) => `rgb(${rgb.join(",")})`;

  /** A colour a value: in sequence where they are numbers, kept apart where they are names. */
  function colours(values) {
    const [from, to] = DARK.matches ? [0.3, 1] : [0, 0.8];
    const sequence = numeric(values) || values.length > OKABE_ITO.length;
    const shade = (n) => css(viridis(from + ((to - from) * n) / Math.max(values.length - 1, 1)));
    return new Map(values.map((value, n) => [value, sequence && values.length > 1 ? shade(n) : OKABE_ITO[n]]));
  }

  function diverging(share) {
    const end = share > 0 ? [178, 24, 43] : [33, 102, 172];
    return end.map((part) => Math.round(247 + (part - 247) * Math.min(Math.abs(share), 1)));
  }

  function legend(name, keys) {
    const spans = [...keys].map(([value, colour]) => make("span", { style: `--key:${colour}` }, value));
    return make("div", { class: "legend" }, make("b", {}, name), ...spans);
  }

  // ---- axes
  /** A log axis where a quantity that is never negative spans more than a factor of five, as in the figures. */
  function decays(metric, values) {
    const above = values.filter((value) => value > 0);
    return !isShare(metric) && values.every((value) => value >= 0) && above.length > 0 && extent(above)[1] > 5 * extent(above)[0];
  }

  function extent(values) {
    let low = Infinity, high = -Infinity;
    for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
    return [low, high];
  }

  function axis(values, log, from, to) {
    const used = log ? values.filter((value) => value > 0) : values;
    const map = log ? Math.log10 : (value) => value;
    let [low, high] = used.length ? extent(used).map(map) : [0, 1];
    const pad = (high - low) * 0.04 || (log ? 0.3 : Math.abs(high) * 0.1 || 0.5);
    [low, high] = [low - pad, high + pad];
    const place = (value) => from + ((to - from) * (map(value) - low)) / (high - low);
    return { place, ticks: log ? logTicks(low, high) : ticks(low, high), holds: (value) => known(value) && (!log || value > 0) };
  }

  function ticks(low, high) {
    const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
    const found = [];
    for (let n = Math.ceil(low / step); n * step <= high; n++) found.push(Number((n * step).toPrecision(12)));
    return found;
  }

  function logTicks(low, high) {
    const decades = high - low, every = Math.ceil(decades / 6), found = [];
    for (let power = Math.floor(low); power <= Math.ceil(high); power++) {
      for (const factor of decades < 2 ? [1, 2, 5] : [1]) {
        const at = power + Math.log10(factor);
        if (at >= low && at <= high && (decades < 2 || power % every === 0)) found.push(Number((factor * 10 ** power).toPrecision(6)));
      }
    }
    return found;
  }

  const tick = (metric, value) => (isShare(metric) ? Number((100 * value).toPrecision(4)) + "%" : String(value).replace("e+", "e"));

  // ---- charts
  const tip = document.getElementById("tip");
  function showTip(event, text) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 4)) + "px";
    tip.style.top = (event.clientY + box.height + 24 > innerHeight ? event.clientY - box.height - 10 : event.clientY + 16) + "px";
  }

  /**
   * Lines, or points where a series has `points`, with axes; hovering names the nearest one.
   * series: [{name, colour, x, y, faint, points, href}]; x, y: {metric, label, log, all: values that set the range}.
   */
  function chart({ title, series, x, y }) {
    const W = 460, H = 290, left = 58, right = 12, top = 12, bottom = 40;
    const across = axis(x.all, x.log, left, W - right), up = axis(y.all, y.log, H - bottom, top);
    const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title}: ${y.label} against ${x.label}` });
    for (const value of across.ticks) {
      const at = across.place(value);
      svg.append(make("line", { class: "grid", x1: at, x2: at, y1: top, y2: H - bottom }));
      svg.append(make("text", { x: at, y: H - bottom + 15, "text-anchor": "middle" }, tick(x.metric, value)));
    }
    for (const value of up.ticks) {
      const at = up.place(value);
      svg.append(make("line", { class: "grid", x1: left, x2: W - right, y1: at, y2: at }));
      svg.append(make("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, tick(y.metric, value)));
    }
    svg.append(make("text", { x: (left + W - right) / 2, y: H - 7, "text-anchor": "middle" }, x.label));
    const targets = [];
    for (const one of series) {
      const points = [];
      one.x.forEach((value, n) => {
        if (across.holds(value) && up.holds(one.y[n])) points.push([across.place(value), up.place(one.y[n]), value, one.y[n]]);
      });
      if (!points.length) continue;
      let mark;
      if (one.points || points.length === 1) {
        mark = make("g", { fill: one.colour, "fill-opacity": 0.85 }, ...points.map(([cx, cy]) => make("circle", { cx, cy, r: 4.5 })));
      } else {
        const d = "M" + points.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join("L");
        mark = make("path", { d, stroke: one.colour, "stroke-width": one.faint ? 1 : 1.8, "stroke-opacity": one.faint ? 0.35 : 0.95 });
      }
      svg.append(mark);
      targets.push({ one, points, mark });
    }
    let picked = null;
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), scale = W / box.width;
      const px = (event.clientX - box.left) * scale, py = (event.clientY - box.top) * scale;
      let best = null, least = 30 ** 2;
      for (const target of targets) {
        for (const point of target.points) {
          const distance = (point[0] - px) ** 2 + (point[1] - py) ** 2;
          if (distance < least) { least = distance; best = { target, point }; }
        }
      }
      picked?.classList.remove("picked");
      picked = best?.target.mark ?? null;
      tip.hidden = !best;
      if (!best) return;
      picked.classList.add("picked");
      const [, , vx, vy] = best.point;
      const where = x.metric ? `${x.label} ${number(x.metric, vx)}` : `${x.label} ${vx}`;
      showTip(event, `${best.target.one.name}\n${y.label} ${number(y.metric, vy)}, ${where}`);
    });
    svg.addEventListener("pointerleave", () => { tip.hidden = true; picked?.classList.remove("picked"); });
    return make("figure", {}, ...(title ? [make("figcaption", {}, title)] : []), svg);
  }

  /** The mean of several lines at each x that any of them has. */
  function meanLine(lines) {
    const at = new Map();
    for (const line of lines) line.x.forEach((x, n) => { if (known(line.y[n])) at.set(x, [...(at.get(x) ?? []), line.y[n]]); });
    const x = [...at.keys()].sort((a, b) => a - b);
    return { x, y: x.map((value) => mean(at.get(value))) };
  }

  // ---- the parts of a sweep's page
  const axisName = (key) => DATA.short[key] ?? key;
  const axisChoices = DATA.axes.map((key) => [key, axisName(key)]);
  const logged = [...new Set(DATA.jobs.flatMap((job) => Object.keys(job.curves)))].sort();
  const metricChoices = (names) => names.map((name) => [name, name]);
  const first = (names, ...wanted) => wanted.find((name) => names.includes(name)) ?? names[0];

  const finished = DATA.jobs.filter((job) => job.status === "done");
  const varied = DATA.axes.filter((key) => settings(finished, key).length > 1 && key !== "seed");
  const best = first(DATA.metrics, "test/accuracy", ...DATA.panels);
  const others = DATA.metrics.filter((name) => name !== best && finished.every((job) => known(job.final[name])));
  const state = {
    filter: "", sort: { column: null, down: false }, columns: new Set([...DATA.panels, ...DATA.metrics.filter((m) => m === "train/accuracy")]),
    colour: varied[0] ?? DATA.axes[0] ?? NONE, metric: first(logged, ...DATA.panels, "test/accuracy"), panels: NONE, means: false, log: true,
    x: first(others, "train/nc1_pinv", ...DATA.panels) ?? best, y: best,
    heat: best, down: varied[0] ?? DATA.axes[0],
    across: varied[1] ?? varied[0] ?? DATA.axes[0],
    gram: "means",
  };

  /** The jobs that the table's filter lets through: each of its words is in the row somewhere. */
  function shown() {
    const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
    return DATA.jobs.filter((job) => {
      const text = [job.name, job.status, job.error, ...Object.entries(job.overrides).map(([k, v]) => `${k}=${v}`)].join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }

  const boxes = {};
  const box = (name) => (boxes[name] = make("div"));

  function columns() {
    const found = [
      { name: "run", get: (job) => DATA.jobs.indexOf(job) + 1, cell: (job) => make("a", { href: job.href, title: job.name }, String(DATA.jobs.indexOf(job) + 1)) },
      { name: "status", get: (job) => job.status, cell: (job) => make("span", { class: job.status }, job.status) },
      ...DATA.axes.map((key) => ({ name: axisName(key), get: (job) => setting(job, key), cell: (job) => setting(job, key), numeric: numeric(settings(DATA.jobs, key)) })),
      ...DATA.metrics.filter((name) => state.columns.has(name)).map((name) => ({ name, get: (job) => job.final[name], cell: (job) => number(name, job.final[name]), numeric: true })),
      { name: "seconds", get: (job) => job.seconds, cell: (job) => (known(job.seconds) ? job.seconds.toFixed(job.seconds < 10 ? 1 : 0) : "-"), numeric: true },
    ];
    return found;
  }

  function sorted(jobs, column) {
    if (!column) return jobs;
    const keys = new Map(jobs.map((job) => {
      const value = column.get(job);
      const missing = value === undefined || value === null || value === "";
      return [job, missing ? null : column.numeric ? Number(value) : value];
    }));
    const sign = state.sort.down ? -1 : 1;
    return [...jobs].sort((a, b) => {
      const [p, q] = [keys.get(a), keys.get(b)];
      if (!known(p) && typeof p !== "string") return known(q) || typeof q === "string" ? 1 : 0; // what is unknown stays last
      if (!known(q) && typeof q !== "string") return -1;
      return sign * (typeof p === "number" && typeof q === "number" ? p - q : String(p).localeCompare(String(q), "en", { numeric: true }));
    });
  }

  function table() {
    const all = columns(), jobs = shown();
    const by = all.find((column) => column.name === state.sort.column);
    const head = all.map((column) => {
      const order = column === by ? (state.sort.down ? "descending" : "ascending") : null;
      const click = () => {
        state.sort = { column: column.name, down: column === by && !state.sort.down };
        table();
        [...boxes.table.querySelectorAll("th button")].find((button) => button.textContent === column.name)?.focus();
      };
      return make("th", { scope: "col", class: column.numeric ? "number" : null, "aria-sort": order }, make("button", { type: "button", onclick: click }, column.name));
    });
    const rows = sorted(jobs, by).flatMap((job) => [
      make("tr", { class: "run" }, ...all.map((column) => make("td", { class: column.numeric ? "number" : null }, column.cell(job)))),
      ...(job.error ? [make("tr", {}, make("td"), make("td", { class: "error", colspan: all.length - 1 }, job.error))] : []),
    ]);
    boxes.table.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
    boxes.count.textContent = `${jobs.length} of ${DATA.jobs.length} runs` + (jobs.length < DATA.jobs.length ? "; the parts below show these only" : "");
  }

  /** [value, jobs] of each value of an axis; one group of all where it is none. */
  function grouped(jobs, key) {
    return key === NONE ? [["", jobs]] : settings(jobs, key).map((value) => [value, jobs.filter((job) => setting(job, key) === value)]);
  }
  const palette = () => (state.colour === NONE ? new Map() : colours(settings(DATA.jobs, state.colour)));
  const colourOf = (keys, job) => keys.get(setting(job, state.colour)) ?? OKABE_ITO[0];

  function curves() {
    const keys = palette(), metric = state.metric;
    const jobs = shown().filter((job) => curve(job, metric));
    const all = jobs.map((job) => curve(job, metric)), values = all.flatMap((line) => line.y);
    const x = { label: "epoch", all: all.flatMap((line) => extent(line.x)) };
    const y = { metric, label: metric, log: state.log && decays(metric, values), all: values };
    const figures = grouped(jobs, state.panels).map(([value, inside]) => {
      const runs = inside.map((job) => ({ name: job.label, colour: colourOf(keys, job), faint: state.means, ...curve(job, metric) }));
      const means = !state.means ? [] : grouped(inside, state.colour).map(([group, members]) => ({
        name: `mean of ${members.length} runs${group && `, ${axisName(state.colour)}=${group}`}`, colour: colourOf(keys, members[0]),
        ...meanLine(members.map((job) => curve(job, metric))),
      }));
      return chart({ title: value ? `${axisName(state.panels)} = ${value}` : metric, series: [...runs, ...means], x, y });
    });
    boxes.curves.replaceChildren(
      ...(state.colour === NONE ? [] : [legend(axisName(state.colour), keys)]),
      figures.length && jobs.length ? make("div", { class: state.panels === NONE ? "charts single" : "charts" }, ...figures) : "No run logged this by epoch.",
    );
  }

  function scatter() {
    const keys = palette();
    const jobs = shown().filter((job) => known(job.final[state.x]) && known(job.final[state.y]));
    const one = (metric) => {
      const all = jobs.map((job) => job.final[metric]);
      return { metric, label: metric, log: decays(metric, all) && all.every((value) => value > 0), all };
    };
    const series = jobs.map((job) => ({ name: job.label, colour: colourOf(keys, job), points: true, x: [job.final[state.x]], y: [job.final[state.y]] }));
    boxes.scatter.replaceChildren(
      ...(state.colour === NONE ? [] : [legend(axisName(state.colour), keys)]),
      jobs.length ? make("div", { class: "charts single" }, chart({ title: `${state.y} against ${state.x}`, series, x: one(state.x), y: one(state.y) })) : "No run has both.",
    );
  }

  function heat() {
    const jobs = shown().filter((job) => known(job.final[state.heat]));
    const [downs, acrosses] = [settings(jobs, state.down), state.across === state.down ? [null] : settings(jobs, state.across)];
    const cells = downs.map((down) => acrosses.map((across) => {
      const inside = jobs.filter((job) => setting(job, state.down) === down && (across === null || setting(job, state.across) === across));
      return { n: inside.length, value: inside.length ? mean(inside.map((job) => job.final[state.heat])) : null };
    }));
    const values = cells.flat().filter((cell) => cell.n).map((cell) => cell.value);
    const log = decays(state.heat, values) && values.every((value) => value > 0), map = log ? Math.log : (value) => value;
    const [low, high] = extent(values).map(map);
    const rows = downs.map((down, n) => make("tr", {}, make("th", { scope: "row", class: "number" }, down), ...cells[n].map((cell) => {
      if (!cell.n) return make("td", {}, "-");
      const rgb = viridis(high > low ? (map(cell.value) - low) / (high - low) : 0.5);
      const ink = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140 ? "#000" : "#fff";
      return make("td", { style: `background:${css(rgb)};color:${ink}`, title: `mean of ${cell.n} run${cell.n > 1 ? "s" : ""}` }, number(state.heat, cell.value));
    })));
    const corner = make("th", { scope: "col" }, `${axisName(state.down)} ↓${state.across === state.down ? "" : `  ${axisName(state.across)} →`}`);
    const head = make("tr", {}, corner, ...acrosses.map((across) => make("th", { scope: "col", class: "number" }, across ?? state.heat)));
    const rest = DATA.axes.filter((key) => key !== state.down && key !== state.across).map(axisName);
    const counts = cells.flat().map((cell) => cell.n).filter(Boolean), [least, most] = counts.length ? extent(counts) : [0, 0];
    const runs = least === most ? most : `${least} to ${most}`;
    boxes.heat.replaceChildren(
      make("p", { class: "muted" }, `${state.heat}; ${most > 1 ? `each cell the mean of ${runs} runs${rest.length ? `, over ${rest.join(", ")}` : ""}` : "each cell one run"}${log ? "; colours on a log scale" : ""}.`),
      make("div", { class: "scroll" }, make("table", { class: "heat" }, make("thead", {}, head), make("tbody", {}, ...rows))),
    );
  }

  // ---- Gram matrices
  function pixels(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return Float64Array.from(new Int16Array(bytes.buffer), (value) => (value === -32768 ? NaN : value / 32767));
  }

  const GRAMS = [["means", "class means"], ["classifier", "classifier"], ["means-etf", "class means - ETF"], ["classifier-etf", "classifier - ETF"]];

  /** {values, side, worst}: cosines, or their difference from the ETF's; worst: the largest difference. */
  function gram(job, kind) {
    const [part, deviation] = kind.split("-");
    if (!job.gram?.[part]) return null;
    const values = pixels(job.gram[part]), side = Math.sqrt(values.length), off = -1 / (job.gram.K - 1);
    const different = values.map((value, n) => value - (n % (side + 1) === 0 ? 1 : off));
    return { values: deviation ? different : values, side, worst: job.gram.worst[part] };
  }

  function gramCanvas(job, found, limit, caption) {
    const { values, side } = found;
    const canvas = make("canvas", { width: side, height: side, role: "img", "aria-label": `Gram matrix of ${job.label}` });
    const context = canvas.getContext("2d"), image = context.createImageData(side, side);
    values.forEach((value, n) => image.data.set([...(known(value) ? diverging(value / limit) : [150, 150, 150]), 255], 4 * n));
    context.putImageData(image, 0, 0);
    canvas.addEventListener("pointermove", (event) => {
      const frame = canvas.getBoundingClientRect();
      const at = [event.clientY - frame.top, event.clientX - frame.left].map((offset) => Math.min(side - 1, Math.max(0, Math.floor((offset / frame.width) * side))));
      showTip(event, `${job.label}\n${job.gram.names[at[0]]}, ${job.gram.names[at[1]]}: ${values[at[0] * side + at[1]].toFixed(3)}`);
    });
    canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
    return make("figure", {}, canvas, make("figcaption", {}, caption));
  }

  function grams() {
    const found = shown().map((job) => [job, gram(job, state.gram)]).filter(([, one]) => one);
    const limit = state.gram.endsWith("etf") ? Math.max(FINEST, ...found.map(([, one]) => one.worst)) : 1;
    const figures = found.map(([job, one]) => gramCanvas(job, one, limit, make("span", {}, make("a", { href: job.href }, job.label), make("br"), `farthest from the ETF: ${number("", one.worst)}`)));
    boxes.grams.replaceChildren(
      make("p", { class: "muted" }, found.length ? `${gramWords(found[0][0])} Blue -${Number(limit.toPrecision(2))}, white 0, red ${Number(limit.toPrecision(2))}, the same for all.` : "No run has left any."),
      make("div", { class: "grams" }, ...figures),
    );
  }

  function gramWords(job) {
    const { K, names, split } = job.gram;
    return `Cosines of the centred ${split} class means and of the classifier's rows; a simplex ETF of ${K} classes has 1 and ${Number((-1 / (K - 1)).toPrecision(3))}.` +
      (names.length < K ? ` ${names.length} of the ${K} classes are shown.` : "");
  }

  // ---- synthetic images
  function images() {
    const shares = [...new Set([best, ...DATA.panels])].filter(isShare);
    const found = shown().filter((job) => job.images).map((job) => make("figure", {},
      make("img", { src: job.images, alt: `synthetic images of ${job.label}` }),
      make("figcaption", {}, make("a", { href: job.href }, job.label), ...shares.flatMap((name) => [make("br"), `${name} ${number(name, job.final[name])}`]))));
    boxes.images.replaceChildren(found.length ? make("div", { class: "sets" }, ...found) : "No run has left any.");
  }

  // ---- pages
  function update() {
    table();
    if (logged.length) curves();
    if (DATA.metrics.length) scatter();
    if (DATA.metrics.length && DATA.axes.length) heat();
    if (boxes.grams) grams();
    if (boxes.images) images();
  }
  const set = (key, draw) => (value) => { state[key] = value; draw(); };

  function sweepPage() {
    const counts = ["done", "failed", "unfinished"].map((status) => [status, DATA.jobs.filter((job) => job.status === status).length]).filter(([, n]) => n);
    const same = Object.entries(DATA.same).map(([key, value]) => `${key}=${value}`).join("  ");
    const parts = [
      make("h1", {}, `Sweep ${DATA.title}`),
      make("p", {}, `${DATA.jobs.length} runs: `, ...counts.flatMap(([status, n], k) => [k ? ", " : "", make("span", { class: status }, `${n} ${status}`)])),
      ...(same ? [make("p", { class: "muted" }, `All with ${same}`)] : []),
    ];
    const colourBy = () => select("colour by", [...axisChoices, [NONE, NONE]], state.colour, (value) => {
      state.colour = value;
      document.querySelectorAll("select.colour").forEach((other) => { other.value = value; });
      if (logged.length) curves();
      if (DATA.metrics.length) scatter();
    });
    const marked = (label) => { label.querySelector("select").classList.add("colour"); return label; };
    const picks = DATA.metrics.map((name) => check(name, state.columns.has(name), (on) => { state.columns[on ? "add" : "delete"](name); table(); }));
    parts.push(section("Runs", null,
      make("div", { class: "bar" },
        make("label", {}, "filter: words such as failed or width=64", make("input", { type: "search", id: "filter", oninput: (event) => { state.filter = event.target.value; update(); } })),
        Object.assign(box("count"), { className: "muted" })),
      Object.assign(box("table"), { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "table of runs" }),
      make("details", {}, make("summary", { class: "muted" }, "columns: final values to show"), make("div", { class: "columns" }, ...picks)),
    ));
    if (logged.length) {
      parts.push(section("Learning curves", `Thinned to ${DATA.points} points a line; hover to name one.`,
        make("div", { class: "bar" },
          select("metric", metricChoices(logged), state.metric, set("metric", curves)), marked(colourBy()),
          select("a panel for each", [[NONE, NONE], ...axisChoices], state.panels, set("panels", curves)),
          check("mean of each colour", state.means, set("means", curves)), check("log scale where it decays", state.log, set("log", curves))),
        box("curves")));
    }
    if (DATA.metrics.length) {
      parts.push(section("One final value against another", "A point a run.",
        make("div", { class: "bar" }, select("x", metricChoices(DATA.metrics), state.x, set("x", scatter)), select("y", metricChoices(DATA.metrics), state.y, set("y", scatter)), marked(colourBy())),
        box("scatter")));
    }
    if (DATA.metrics.length && DATA.axes.length) {
      parts.push(section("Final values over two settings", null,
        make("div", { class: "bar" }, select("metric", metricChoices(DATA.metrics), state.heat, set("heat", heat)), select("rows", axisChoices, state.down, set("down", heat)), select("columns", axisChoices, state.across, set("across", heat))),
        box("heat")));
    }
    if (DATA.jobs.some((job) => job.gram)) {
      parts.push(section("Gram matrices", null, make("div", { class: "bar" }, select("of", GRAMS, state.gram, set("gram", grams))), box("grams")));
    }
    if (DATA.jobs.some((job) => job.images)) {
      parts.push(section("Synthetic images", "Of each run the set that was kept; its own page shows them large.", box("images")));
    }
    document.getElementById("page").append(...parts);
    update();
  }

  function runPage() {
    const job = DATA.jobs[0], page = document.getElementById("page");
    if (DATA.up) page.append(make("p", {}, make("a", { href: DATA.up }, "← the sweep")));
    const facts = Object.entries(DATA.facts ?? {}).map(([name, value]) => `${value} ${name}`).join(", ");
    page.append(make("h1", {}, `Run ${DATA.title.replaceAll(",", ",\u200b")}`), make("p", {}, make("span", { class: job.status }, job.status), facts && `: ${facts}`));
    if (job.error) page.append(make("p", { class: "error" }, job.error));

    const initial = DATA.initial ?? {};
    const measured = new Set([...DATA.metrics, ...logged]);
    // of distilled images the value at the class means of train, where there is one: a single image is its own mean
    const named = (split, base) => {
      const atTrainMeans = `${split}/${base}__train_means`;
      return split === "distilled" && measured.has(atTrainMeans) ? atTrainMeans : `${split}/${base}`;
    };
    const plain = (split, base) => `${split}/${base}`;
    const note = measured.has("distilled/nc1_pinv__train_means") ? " Of distilled images NC1 and NC4 are at the class means of train; train, real_test and distilled are of the network that learned with them, val and test of fresh ones." : "";
    const bases = (names) => [...new Set(names.map((name) => name.slice(name.indexOf("/") + 1)))];
    const splitsOf = (names) => Object.keys(SPLITS).filter((split) => names.some((name) => name.startsWith(split + "/")));
    const finals = (rows, at) => {
      const splits = splitsOf(rows.flatMap(([, base]) => DATA.metrics.filter((name) => name.slice(name.indexOf("/") + 1) === base)));
      const head = splits.flatMap((split) => [`${split}: initial`, "final"]).map((text) => make("th", { scope: "col", class: "number" }, text));
      const body = rows.map(([label, base]) => make("tr", {}, make("th", { scope: "row" }, label), ...splits.flatMap((split) =>
        [initial, job.final].map((values) => make("td", { class: "number" }, number(base, values[at(split, base)]))))));
      return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, make("th"), ...head)), make("tbody", {}, ...body)));
    };
    if (DATA.metrics.length) {
      const names = bases(DATA.metrics), main = DATA.rows.filter(([, base]) => names.includes(base));
      page.append(section("Before and after training", note, ...(main.length ? [finals(main, named)] : []),
        make("details", {}, make("summary", {}, `all ${names.length} metrics`), finals(names.map((name) => [name, name]), plain))));
    }
    if (logged.length) {
      const names = bases(logged), splits = splitsOf(logged), wanted = DATA.rows.map(([, base]) => base).filter((base) => names.includes(base));
      const one = (base, at) => {
        const lines = splits.filter((split) => curve(job, at(split, base))).map((split) => ({ name: split, colour: SPLITS[split], ...curve(job, at(split, base)) }));
        const values = lines.flatMap((line) => line.y);
        return chart({ title: base, series: lines, x: { label: "epoch", all: lines.flatMap((line) => extent(line.x)) }, y: { metric: base, label: base, log: decays(base, values), all: values } });
      };
      const other = make("div", { class: "charts single" }), rest = names.filter((name) => !wanted.includes(name));
      const draw = (base) => other.replaceChildren(one(base, plain));
      page.append(section("Learning curves", `Thinned to ${DATA.points} points a line; hover for values.${note}`, legend("split", splits.map((split) => [split, SPLITS[split]])), make("div", { class: "charts" }, ...wanted.map((base) => one(base, named)))));
      if (rest.length) { 
        draw(first(rest, "nc1_quotient"));
        page.append(make("div", { class: "bar" }, select("another metric", metricChoices(rest), first(rest, "nc1_quotient"), draw)), other);
      }
    }
    if (job.gram) {
      const figures = GRAMS.map(([kind, words]) => [gram(job, kind), words, kind]).filter(([one]) => one).map(([one, words, kind]) => {
        const limit = kind.endsWith("etf") ? Math.max(one.worst, FINEST) : 1;
        return gramCanvas(job, one, limit, `${words}: blue -${Number(limit.toPrecision(2))}, white 0, red ${Number(limit.toPrecision(2))}`);
      });
      page.append(section("Gram matrices", gramWords(job), make("div", { class: "grams large" }, ...figures)));
    }
    for (const { title, src } of DATA.pictures ?? []) page.append(section(title, null, make("img", { src, alt: title })));
    page.append(section("Settings", null, make("p", {}, Object.entries(job.overrides).map(([key, value]) => `${key}=${value}`).join("  ")), make("details", {}, make("summary", {}, "config.yaml"), make("pre", { tabindex: 0 }, DATA.config))));
  }

  DARK.addEventListener("change", () => location.reload());
  DATA.kind === "run" ? runPage() : sweepPage();
})();

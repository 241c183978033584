// The one view of delt. A plain module without dependencies: the same file serves notebooks (anywidget) and static pages.
// Every text goes in by textContent, since class names are the user's.

const SVG = "http://www.w3.org/2000/svg";

// ------------------------------------------------------------------------------------------ small parts

function add(parent, name, attributes = {}, text = null) {
  const node = parent.appendChild(document.createElementNS(SVG, name));
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  return node;
}

function put(parent, name, className = "", text = null) {
  const node = parent.appendChild(document.createElement(name));
  node.className = className;
  if (text !== null) node.textContent = text;
  return node;
}

const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 6 });
const many = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
const plain = (value) => (typeof value === "number" ? number(value) : value);

function lifted(colour, ink = "var(--ink)", lift = "var(--lift)") {  // dark themes lift dark colours
  return `color-mix(in srgb, ${colour}, ${ink} ${lift})`;
}

function paint(what, colour) {  // attributes of a shape
  return { [what]: colour, style: `${what}: ${lifted(colour)}` };
}

function paintOn(context, style, colour) {  // a canvas knows no variables; where it cannot mix, the plain colour stays
  context.fillStyle = colour;
  context.fillStyle = lifted(colour, style.getPropertyValue("--ink"), style.getPropertyValue("--lift"));
}

function roomIn(root) {  // CSS pixels between the paddings
  const { paddingLeft, paddingRight } = getComputedStyle(root);
  return root.clientWidth ? root.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight) : 700;
}

function ticks(low, high, most) {  // round numbers between two others
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((part) => part * power >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9) || 0; k * step <= high + step * 1e-6; k++) found.push(k * step + 0);
  return found;
}

function logTicks(low, high) {  // powers of ten where there are several, 1, 2 and 5 between them where not, round steps over a short span
  if (high / low < 4) return ticks(low, high, 4);
  const decades = Array.from({ length: 40 }, (_, k) => 10 ** (k - 20));
  const parts = high / low > 300 ? [1] : [1, 2, 5];
  return decades.flatMap((ten) => parts.map((part) => part * ten)).filter((value) => value >= low && value <= high);
}

function drawn(root) {  // tests wait for this counter
  root.dataset.drawn = Number(root.dataset.drawn || 0) + 1;
}

// ------------------------------------------------------------------------------------------ schedule

const FRAME = { width: 640, left: 66, right: 98, top: 20 };

function schedule(root, model) {
  const svg = add(root, "svg", { role: "img" });
  const draw = () => {
    svg.replaceChildren();
    const state = model.get("state");
    if (!state.joins) return;
    drawSchedule(svg, state);
    drawn(root);
  };
  return { draw, events: ["change:state"] };
}

function drawSchedule(svg, state) {
  const { width, left, right, top } = FRAME, bars = 170, panel = 46, gap = 20;
  const height = top + bars + state.panels.length * (panel + gap) + 34;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const ipc = state.sizes.reduce((a, b) => a + b, 0), total = state.iterations || 1;
  const x = (t) => left + (t / total) * (width - left - right), y = (n) => top + (n / ipc) * bars;
  add(svg, "text", { x: left, y: top - 7, class: "muted" }, "sub-batch");
  add(svg, "text", { x: width - right + 6, y: top - 7, class: "muted" }, "images × updates");
  label(svg, 14, top + bars / 2, "Images per class");
  for (const n of ticks(0, ipc, 5).filter(Number.isInteger)) add(svg, "text", { x: left - 6, y: y(n) + 4, "text-anchor": "end" }, number(n));
  add(svg, "line", { x1: left, x2: left, y1: top, y2: top + bars, class: "axis" });
  if (!state.iterations) {
    add(svg, "text", { x: width / 2, y: top + bars / 2, "text-anchor": "middle", class: "muted" }, "nothing is optimised: the starting images are kept");
    return;
  }
  let before = 0;
  const every = Math.ceil(state.sizes.length / 12);
  state.sizes.forEach((size, k) => {
    bar(svg, state, k, x, y(before), y(before + size), k % every === 0);
    before += size;
  });
  if (state.joins.at(-1) > 0.4 * total)
    add(svg, "text", { x: left + 10, y: top + bars - 12, class: "muted" }, `${Math.round(100 * state.saved)}% of the work is saved`);
  state.panels.forEach((one, k) => curvePanel(svg, one, x, top + bars + gap + k * (panel + gap), panel, total, state));
  const foot = height - 30;
  for (const t of ticks(0, total, 8).filter(Number.isInteger)) {
    add(svg, "line", { x1: x(t), x2: x(t), y1: foot, y2: foot + 4, class: "axis" });
    add(svg, "text", { x: x(t), y: foot + 15, "text-anchor": "middle" }, number(t));
  }
  add(svg, "text", { x: (left + width - right) / 2, y: foot + 28, "text-anchor": "middle" }, "Iteration");
  if (state.now === null) return;
  add(svg, "line", { x1: x(state.now), x2: x(state.now), y1: top, y2: foot, class: "now" });
  add(svg, "text", { x: Math.max(x(state.now), left + 74), y: top - 7, "text-anchor": "middle", class: "muted" }, "now");
}

function bar(svg, state, k, x, upper, lower, named) {
  const join = x(state.joins[k]), end = x(state.iterations), middle = (upper + lower) / 2 + 4;
  const box = { x: join, y: upper, width: end - join, height: lower - upper, ...paint("fill", state.colours[k]) };
  const node = add(svg, "rect", { ...box, class: lower - upper > 4 ? "bar" : "bar thin" });
  const says = `sub-batch ${k + 1}: ${many(state.sizes[k], "image")}, joins at ${number(state.joins[k])}, ${many(state.updates[k], "update")}`;
  add(node, "title", {}, says);
  if (lower - upper > 11 && end - join > 14)
    add(svg, "text", { x: join + 5, y: middle, style: `fill: ${readable(state.colours[k])}`, "pointer-events": "none" }, k + 1);
  if (named) add(svg, "text", { x: end + 6, y: middle }, `${state.sizes[k]} × ${number(state.updates[k])}`);
}

function readable(colour) {  // white or black, whichever can be read on it
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return 0.3 * r + 0.59 * g + 0.11 * b > 127 ? "#222" : "#fff";
}

function label(svg, x, y, text) {
  add(svg, "text", { x: 0, y: 0, transform: `translate(${x} ${y}) rotate(-90)`, "text-anchor": "middle" }, text);
}

function curvePanel(svg, panel, x, top, height, total, state) {
  const y = (value) => top + height - (value / panel.top) * height;
  [0, panel.top].forEach((value) => {
    add(svg, "line", { x1: x(0), x2: x(total), y1: y(value), y2: y(value), class: value ? "grid" : "axis" });
    add(svg, "text", { x: x(0) - 6, y: y(value) + 4, "text-anchor": "end" }, number(value));
  });
  add(svg, "text", { x: x(total) + 6, y: top + height / 2 - 2 }, panel.name);
  if (panel.unit) add(svg, "text", { x: x(total) + 6, y: top + height / 2 + 11, class: "muted" }, panel.unit);
  for (const line of panel.lines) {
    const path = line.points.map(([t, v], k) => `${k ? "L" : "M"}${x(t).toFixed(1)} ${y(v).toFixed(1)}`).join("");
    const single = panel.lines.length === 1;
    add(svg, "path", { d: path, fill: "none", "stroke-width": 1.4, ...(single ? { class: "ink" } : paint("stroke", line.colour)) });
    if (single && state.joins.length <= 12) state.joins.forEach((join, k) => dot(svg, x(join), y(nearest(line.points, join)), state.colours[k]));
  }
}

const nearest = (points, t) => points.reduce((a, b) => (Math.abs(b[0] - t) < Math.abs(a[0] - t) ? b : a))[1];
const dot = (svg, cx, cy, fill) => add(svg, "circle", { cx, cy, r: 3.2, class: "bar", ...paint("fill", fill) });

// ------------------------------------------------------------------------------------------ curves

function curves(root, model) {
  const svg = add(root, "svg", { role: "img" });
  const draw = () => {
    svg.replaceChildren();
    const state = model.get("state");
    if (!state.lines) return;
    drawCurves(svg, state);
    drawn(root);
  };
  return { draw, events: ["change:state"] };
}

function drawCurves(svg, state) {
  const { width, left } = FRAME, top = 10, tall = 150, right = 100;
  svg.setAttribute("viewBox", `0 0 ${width} ${top + tall + 36}`);
  const values = state.lines.flatMap((line) => line.points.map(([, v]) => v)).filter((v) => !state.log || v > 0);
  const scale = state.log ? Math.log10 : (v) => v;
  let low = scale(Math.min(...values)), high = scale(Math.max(...values));
  if (!values.length) [low, high] = [0, 1];
  [low, high] = [low - 0.06 * (high - low || 1), high + 0.06 * (high - low || 1)];
  const x = (t) => left + (t / (state.span[1] || 1)) * (width - left - right), y = (v) => top + tall - ((v - low) / (high - low || 1)) * tall;
  if (!values.length)
    add(svg, "text", { x: (left + width - right) / 2, y: top + tall / 2, "text-anchor": "middle", class: "muted" }, "nothing was measured yet");
  for (const value of !values.length ? [] : state.log ? logTicks(10 ** low, 10 ** high) : ticks(low, high, 4)) {
    add(svg, "line", { x1: left, x2: width - right, y1: y(scale(value)), y2: y(scale(value)), class: "grid" });
    add(svg, "text", { x: left - 6, y: y(scale(value)) + 4, "text-anchor": "end" }, number(value));
  }
  for (const t of ticks(0, state.span[1], 6).filter(Number.isInteger)) add(svg, "text", { x: x(t), y: top + tall + 16, "text-anchor": "middle" }, number(t));
  add(svg, "line", { x1: left, x2: width - right, y1: top + tall, y2: top + tall, class: "axis" });
  add(svg, "text", { x: (left + width - right) / 2, y: top + tall + 31, "text-anchor": "middle" }, state.x);
  label(svg, 14, top + tall / 2, state.y);
  const every = Math.ceil(state.lines.length / 11);
  state.lines.forEach((line, k) => {
    const path = line.points.filter(([, v]) => !state.log || v > 0).map(([t, v], n) => `${n ? "L" : "M"}${x(t).toFixed(1)} ${y(scale(v)).toFixed(1)}`);
    add(svg, "path", { d: path.join(""), fill: "none", "stroke-width": 1.6, ...paint("stroke", line.colour) });
    if (k % every) return;
    const at = top + 8 + (k / every) * 13;
    add(svg, "rect", { x: width - right + 8, y: at - 4, width: 10, height: 4, ...paint("fill", line.colour) });
    add(svg, "text", { x: width - right + 22, y: at + 2, class: "muted" }, line.name);
  });
}

// ------------------------------------------------------------------------------------------ pictures and tiles

async function decoded(bytes) {  // bytes of an encoded picture -> something to draw tiles from
  const image = new Image();
  image.src = URL.createObjectURL(new Blob([bytes]));
  await image.decode().finally(() => URL.revokeObjectURL(image.src));
  return image;
}

function sharp(canvas, width, height) {  // a canvas of this size in CSS pixels, drawn in the screen's own
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

function tile(context, image, [w, h], column, row, x, y, side) {
  context.imageSmoothingEnabled = Math.max(w, h) > 64;
  context.drawImage(image, column * w, row * h, w, h, x, y, side, (side * h) / w);
}

// ------------------------------------------------------------------------------------------ frames

function frames(root, model) {
  const controls = put(root, "div", "delt-bar"), canvas = put(root, "canvas", "delt-canvas");
  const parts = scrubber(controls, model);
  controls.style.display = "none";  // until there is something to scrub through
  let image = null, of = "", turn = 0;

  const draw = () => {
    const given = model.get("state"), state = { ...given, ...(given.of_label || {})[of] };  // a page holds several classes
    if (!image || !state.rows) return;
    controls.style.display = state.scrub ? "" : "none";
    parts.show(state);
    const at = Math.min(model.get("at"), state.iterations.length - 1);
    drawFrames(root, canvas, image, state, state.scrub ? at : 0, model.get("difference"));
    root.dataset.at = at;
    root.dataset.label = of;
    drawn(root);
  };
  const load = async () => {  // decode first, then draw: no flicker
    const label = model.get("label"), bytes = (model.get("sheets") || {})[label], mine = ++turn;
    root.classList.toggle("waiting", !bytes);
    if (!bytes) return;
    const next = await decoded(bytes);
    if (mine !== turn) return;  // a newer one is on its way
    [image, of] = [next, label];
    draw();
  };
  const events = ["change:at", "change:difference"];
  model.on("change:sheets", load);
  model.on("change:label", load);
  load();
  return { draw, events, end: () => (parts.end(), model.off("change:sheets", load), model.off("change:label", load)) };
}

function scrubber(controls, model) {
  const choice = put(controls, "select", "delt-class"), play = put(controls, "button", "delt-play", "▶ play");
  const slider = put(controls, "input", "delt-scrub"), says = put(controls, "output");
  const wrap = put(controls, "label"), toggle = put(wrap, "input", "delt-difference");
  wrap.append(" difference from the start");
  [choice.title, play.title] = ["Class", "Play or pause"];
  Object.assign(slider, { type: "range", min: 0, title: "Iteration (arrow keys move by one)" });
  slider.dataset.lmSuppressShortcuts = "true";  // else Jupyter takes the arrow keys
  toggle.type = "checkbox";
  const set = (name, value) => (model.set(name, value), model.save_changes());
  let timer = 0;
  const halt = () => (clearInterval(timer), (timer = 0), (play.textContent = "▶ play"));
  const step = () => (Number(slider.value) >= Number(slider.max) ? halt() : set("at", Number(slider.value) + 1));
  play.onclick = () => {
    if (timer) return halt();
    if (slider.value === slider.max) set("at", 0);
    timer = setInterval(step, 100);
    play.textContent = "❚❚ pause";
  };
  slider.oninput = () => set("at", Number(slider.value));
  toggle.onchange = () => set("difference", toggle.checked);
  choice.onchange = () => set("label", choice.value);
  const show = (state) => {
    if (choice.dataset.labels !== JSON.stringify(state.labels)) {
      choice.replaceChildren(...state.labels.map((name) => new Option(state.names[name] || name, name)));
      choice.dataset.labels = JSON.stringify(state.labels);
      choice.style.display = state.labels.length > 1 ? "" : "none";
    }
    choice.value = model.get("label");
    slider.max = state.iterations.length - 1;
    slider.value = model.get("at");
    toggle.checked = model.get("difference");
    says.textContent = `iteration ${number(state.iterations[slider.value])} of ${number(state.iterations.at(-1))}`;
  };
  return { show, end: halt };
}

function drawFrames(root, canvas, image, state, at, difference) {
  const last = state.iterations.length - 1;
  const blocks = state.scrub ? [["start", 0], [difference ? "change so far" : `iteration ${number(state.iterations[at])}`, at], ["end", last]] : [["", 0]];
  const room = Math.max(320, roomIn(root)) - 100, grid = layout(state, blocks.length, room);
  const context = sharp(canvas, 98 + blocks.length * grid.block, grid.head + grid.tops.at(-1));
  const style = getComputedStyle(root);
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  const waits = (row, s) => row.join > 0 && state.iterations[s] <= row.join;
  state.rows.forEach((row, r) => {
    const note = state.scrub && waits(row, at) ? `joins at ${number(row.join)}` : row.note;
    rowName(context, style, { ...row, note }, grid.head + grid.tops[r], grid.tops[r + 1] - grid.tops[r] - 4);
  });
  blocks.forEach(([name, s], b) => {
    const left = 96 + b * grid.block;
    context.fillStyle = style.getPropertyValue("--muted");
    context.fillText(name, left, 8);
    state.rows.forEach((row, r) => {
      context.globalAlpha = waits(row, s) && (b === 1 || !state.scrub) ? 0.35 : 1;
      row.images.forEach((i, c) => {
        const x = left + (c % grid.columns) * (grid.side + 2), y = grid.head + grid.tops[r] + Math.floor(c / grid.columns) * (grid.high + 2);
        tile(context, image, state.tile, s, i, x, y, grid.side);
        if (b === 1 && difference) change(context, image, state.tile, i, s, x, y, grid.side);
      });
      context.globalAlpha = 1;
    });
  });
}

function layout(state, blocks, room) {  // tiles as large as there is room for; long rows are folded rather than tiny
  const longest = Math.max(1, ...state.rows.map((row) => row.images.length)), width = room / blocks - (blocks > 1 ? 18 : 0);
  const columns = Math.max(1, Math.min(longest, Math.floor(width / 38)));
  const most = state.scrub ? Math.max(56, Math.min(112, 720 / state.rows.length)) : 64;  // all rows in view while scrubbing
  const side = Math.max(8, Math.floor(Math.min(most, width / columns - 2)));
  const high = Math.round((side * state.tile[1]) / state.tile[0]), tops = [0];
  for (const row of state.rows) tops.push(tops.at(-1) + Math.ceil(row.images.length / columns) * (high + 2) + 4);
  const block = columns * (side + 2) + (blocks > 1 ? 18 : 0), least = blocks > 1 ? Math.min(96, room / blocks) : 0;  // for its name
  return { columns, side, high, tops, head: state.scrub ? 18 : 2, block: Math.max(least, block) };
}

function rowName(context, style, row, y, high) {
  paintOn(context, style, row.colour);
  context.fillRect(0, y, 5, high);
  context.fillStyle = style.getPropertyValue("--ink");
  context.fillText(row.name, 10, y + high / 2 - (high > 26 ? 7 : 0));
  context.fillStyle = style.getPropertyValue("--muted");
  if (high > 26) context.fillText(row.note, 10, y + high / 2 + 7);
}

const scratch = document.createElement("canvas");

function change(context, image, [w, h], row, column, x, y, side) {  // signed: 128 is unchanged
  scratch.width = 2 * w;
  scratch.height = h;
  const small = scratch.getContext("2d", { willReadFrequently: true });
  small.drawImage(image, 0, row * h, w, h, 0, 0, w, h);
  small.drawImage(image, column * w, row * h, w, h, w, 0, w, h);
  const before = small.getImageData(0, 0, w, h), now = small.getImageData(w, 0, w, h);
  for (let k = 0; k < now.data.length; k++) if (k % 4 < 3) now.data[k] = 128 + (now.data[k] - before.data[k]) / 2;
  small.putImageData(now, 0, 0);
  context.drawImage(scratch, 0, 0, w, h, x, y, side, (side * h) / w);
}

// ------------------------------------------------------------------------------------------ scatter

const SHAPES = [  // corners around a dot, in radii; [] is a circle
  [], [], [[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]], [[0, -1.2], [1.1, 0.8], [-1.1, 0.8]], [[0, -1.3], [1.1, 0], [0, 1.3], [-1.1, 0]],
  [[0, 1.2], [1.1, -0.8], [-1.1, -0.8]], star(5), star(4), star(6),
];

function star(points) {
  return Array.from({ length: 2 * points }, (_, k) => [k, k % 2 ? 0.55 : 1.35]).map(([k, r]) => [r * Math.sin((k * Math.PI) / points), -r * Math.cos((k * Math.PI) / points)]);
}

function mark(context, x, y, radius, shape) {
  const corners = shape ? SHAPES[1 + ((shape - 1) % (SHAPES.length - 1))] : [];
  context.beginPath();
  if (!corners.length) context.arc(x, y, radius, 0, 2 * Math.PI);
  else corners.forEach(([dx, dy]) => context.lineTo(x + dx * radius, y + dy * radius));
  context.closePath();
}

function scatter(root, model) {
  const key = put(root, "div", "delt-key"), canvas = put(root, "canvas", "delt-canvas");
  const ring = put(root, "div", "delt-ring"), tooltip = put(root, "div", "delt-tooltip"), table = put(root, "div", "delt-picked");
  Object.assign(canvas, { tabIndex: 0, title: "" });
  let image = null, places = [], lasso = null, turn = 0;

  const draw = () => {
    const state = model.get("state");
    if (!state.x) return;
    places = drawScatter(root, canvas, state, new Set(model.get("picked")), lasso);
    drawKey(key, state);
    drawTable(table, image, state, model.get("picked"));
    drawn(root);
  };
  const load = async () => {
    const bytes = (model.get("sheets") || {}).tiles, mine = ++turn;
    const next = bytes ? await decoded(bytes) : null;
    if (mine === turn) (image = next), draw();
  };
  const trace = () => (places = drawScatter(root, canvas, model.get("state"), new Set(model.get("picked")), lasso));  // quick
  const point = (dot, event) => {
    ring.style.display = dot < 0 ? "none" : "block";
    if (dot >= 0) {
      ring.style.left = `${canvas.offsetLeft + places[dot][0]}px`;
      ring.style.top = `${canvas.offsetTop + places[dot][1]}px`;
    }
    hover(tooltip, canvas, image, model.get("state"), dot, event);
  };
  const pick = (dots) => (model.set("picked", dots), model.save_changes(), draw());
  const near = (event) => {
    const [x, y] = [event.offsetX, event.offsetY];
    let best = -1, least = 100;
    places.forEach(([px, py], k) => {
      const far = (px - x) ** 2 + (py - y) ** 2 - (model.get("state").shape[k] ? 20 : 0);  // synthetic dots lie above
      if (far < least) [best, least] = [k, far];
    });
    return best;
  };
  canvas.onpointerdown = (event) => {
    lasso = [[event.offsetX, event.offsetY]];
    point(-1);
    canvas.setPointerCapture(event.pointerId);
  };
  canvas.onpointermove = (event) => {
    if (!lasso) return point(near(event), event);
    lasso.push([event.offsetX, event.offsetY]);
    trace();
  };
  canvas.onpointerleave = () => point(-1);
  canvas.onpointercancel = () => ((lasso = null), trace());
  canvas.onpointerup = (event) => {
    const path = lasso || [], dot = near(event), before = event.shiftKey ? model.get("picked") : [];
    lasso = null;
    const drag = path.some(([x, y]) => Math.hypot(x - path[0][0], y - path[0][1]) > 5);  // a hand trembles in a click
    const found = drag ? places.map((_, k) => k).filter((k) => inside(places[k], path)) : dot < 0 ? [] : [dot];
    pick([...new Set([...before, ...found])]);
  };
  canvas.onkeydown = (event) => event.key === "Escape" && pick([]);
  model.on("change:sheets", load);
  load();
  return { draw, events: ["change:state", "change:picked"], end: () => model.off("change:sheets", load) };
}

function drawScatter(root, canvas, state, picked, lasso) {
  const width = Math.min(960, Math.max(320, roomIn(root))), height = Math.round(width * 0.58);
  const edge = 14, low = state.axes ? 28 : edge;
  const context = sharp(canvas, width, height), style = getComputedStyle(root);
  const [x0, x1, y0, y1] = [Math.min(...state.x), Math.max(...state.x), Math.min(...state.y), Math.max(...state.y)];
  const places = state.x.map((x, k) => [
    low + ((x - x0) / (x1 - x0 || 1)) * (width - low - edge),
    edge + ((y1 - state.y[k]) / (y1 - y0 || 1)) * (height - low - edge),
  ]);
  if (state.axes) nameAxes(context, state.axes, width, height, style);
  const order = places.map((_, k) => k).sort((a, b) => (state.shape[a] > 0) - (state.shape[b] > 0));  // real ones below
  for (const k of order) {
    const real = !state.shape[k];
    context.globalAlpha = real ? 0.35 : 1;
    paintOn(context, style, state.colour[k]);
    mark(context, ...places[k], real ? 2.5 : 5.5, state.shape[k]);
    context.fill();
    context.globalAlpha = 1;
    context.lineWidth = picked.has(k) ? (real ? 1.2 : 2.5) : 0.8;
    context.strokeStyle = style.getPropertyValue(picked.has(k) ? "--ink" : "--ground");
    if (!real || picked.has(k)) context.stroke();
  }
  if (lasso) {
    context.strokeStyle = style.getPropertyValue("--muted");
    context.setLineDash([4, 3]);
    context.beginPath();
    lasso.forEach((point) => context.lineTo(...point));
    context.stroke();
  }
  return places;
}

function nameAxes(context, [across, up], width, height, style) {
  context.save();
  context.font = "11px system-ui, sans-serif";
  context.strokeStyle = style.getPropertyValue("--faint");
  context.strokeRect(16.5, 0.5, width - 17, height - 17);
  context.fillStyle = style.getPropertyValue("--muted");
  context.textAlign = "center";
  context.fillText(across, width / 2, height - 4);
  context.rotate(-Math.PI / 2);
  context.fillText(up, -height / 2, 10);
  context.restore();
}

function inside([x, y], path) {  // even-odd rule
  let within = false;
  path.forEach(([ax, ay], k) => {
    const [bx, by] = path[(k + 1) % path.length];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) within = !within;
  });
  return within;
}

function thumbnail(parent, image, state, k, side) {
  const canvas = put(parent, "canvas");
  const context = sharp(canvas, side, Math.round((side * state.size[1]) / state.size[0]));
  if (image) tile(context, image, state.size, state.tile[k] % state.grid, Math.floor(state.tile[k] / state.grid), 0, 0, side);
}

function hover(tooltip, canvas, image, state, k, event) {
  tooltip.style.display = k < 0 ? "none" : "block";
  if (k < 0) return;
  tooltip.dataset.dot = k;
  tooltip.replaceChildren();
  thumbnail(tooltip, image, state, k, 112);
  state.columns.forEach((name, c) => {
    const value = state.table[k][c];
    if (value !== null && value !== "") put(tooltip, "div", "", `${name}: ${plain(value)}`);
  });
  const right = event.offsetX > canvas.clientWidth / 2, { offsetWidth: wide, offsetHeight: high } = tooltip;
  tooltip.style.left = `${canvas.offsetLeft + event.offsetX + (right ? -16 - wide : 16)}px`;
  tooltip.style.top = `${canvas.offsetTop + Math.max(0, Math.min(event.offsetY - 60, canvas.clientHeight - high))}px`;
}

function drawKey(key, state) {
  const entry = (name, colour) => {
    const part = put(key, "span");
    const dot = put(part, "i");
    dot.style.background = colour;
    dot.style.background = lifted(colour);
    part.append(name);
  };
  key.replaceChildren();
  state.legend.forEach(({ name, colour }) => entry(name, colour));
  state.shapes.forEach(({ name, shape }) => {
    const part = put(key, "span"), canvas = put(part, "canvas"), context = sharp(canvas, 12, 12);
    context.fillStyle = getComputedStyle(key).color;
    mark(context, 6, 6, shape ? 4 : 2.5, shape);
    context.fill();
    part.append(name);
  });
}

function drawTable(parent, image, state, picked) {
  parent.replaceChildren();
  if (!picked.length) return put(parent, "span", "", "Point at a dot to see its image; click, shift-click or draw around dots to list them here.");
  const table = put(parent, "table"), head = put(table, "tr");
  ["", ...state.columns].forEach((name) => put(head, "th", "", name));
  const listed = [...picked].sort((a, b) => (state.shape[b] > 0) - (state.shape[a] > 0));  // the set's own before real ones
  for (const k of listed.slice(0, 50)) {
    const row = put(table, "tr");
    thumbnail(put(row, "td"), image, state, k, 32);
    state.table[k].forEach((value) => put(row, "td", "", plain(value)));
  }
  if (picked.length > 50) put(parent, "div", "", `and ${picked.length - 50} more`);
}

// ------------------------------------------------------------------------------------------ the door

const KINDS = { schedule, curves, frames, scatter };

function render({ model, el }) {
  const root = put(el, "div", "delt-view");
  root.dataset.kind = model.get("kind");
  const face = KINDS[root.dataset.kind](root, model);
  face.events.forEach((event) => model.on(event, face.draw));
  const resized = new ResizeObserver(() => face.draw());
  resized.observe(el);
  const themed = new MutationObserver(() => face.draw());  // a canvas keeps the old theme's colours
  themed.observe(document.body, { attributeFilter: ["data-jp-theme-name"] });
  face.draw();
  return () => {
    face.events.forEach((event) => model.off(event, face.draw));
    resized.disconnect();
    themed.disconnect();
    if (face.end) face.end();
  };
}

export default { render };

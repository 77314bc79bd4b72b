// Charts over time: canvases that share one view, which buttons and dragging change.
// Slices and rectangles count from the start of the window.
const whole = [0, data.window.end_ps - data.window.start_ps];
const view = { start: whole[0], end: whole[1] };
const drawn = [];
const LEFT = 118, RIGHT = 74;

function chart(id, height, draw, find) {
  const canvas = byId(id);
  const item = { canvas, height, draw, find };
  drawn.push(item);
  let drag = null;
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = [event.offsetX, event.offsetY];
    if (drag != null) {
      paint(item);
      const context = canvas.getContext("2d");
      context.fillStyle = css("focus");
      context.globalAlpha = 0.2;
      context.fillRect(Math.min(drag, x), 0, Math.abs(x - drag), canvas.clientHeight);
      context.globalAlpha = 1;
      return;
    }
    showTip(find ? find(x, y, canvas.clientWidth) : "", event.clientX, event.clientY);
  });
  canvas.addEventListener("pointerleave", () => showTip(""));
  canvas.addEventListener("pointerdown", (event) => { drag = event.offsetX; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", (event) => {
    const [a, b] = [Math.min(drag, event.offsetX), Math.max(drag, event.offsetX)];
    drag = null;
    if (b - a > 4) setView(timeAt(a, canvas.clientWidth), timeAt(b, canvas.clientWidth));
    else paint(item);
  });
  canvas.addEventListener("dblclick", () => setView(...whole));
  canvas.addEventListener("keydown", (event) => {
    const what = { ArrowLeft: "left", ArrowRight: "right", "+": "in", "-": "out", Escape: "all" }[event.key];
    if (what) { zoom(what); event.preventDefault(); }
  });
  return item;
}

const place = (time, width) => LEFT + ((time - view.start) / (view.end - view.start)) * (width - LEFT - RIGHT);
const timeAt = (x, width) => view.start + ((x - LEFT) / (width - LEFT - RIGHT)) * (view.end - view.start);

function setView(start, end) {
  const least = Math.min(1000, whole[1] - whole[0]);
  if (end - start < least) end = start + least;
  const length = Math.min(end - start, whole[1] - whole[0]);
  view.start = Math.max(whole[0], Math.min(start, whole[1] - length));
  view.end = view.start + length;
  byId("view").textContent = "showing " + format.time(view.end - view.start) + " from " + format.time(view.start - whole[0]);
  drawn.forEach(paint);
}

function zoom(what) {
  const length = view.end - view.start, middle = (view.start + view.end) / 2;
  if (what === "all") setView(...whole);
  else if (what === "in") setView(middle - length / 4, middle + length / 4);
  else if (what === "out") setView(middle - length, middle + length);
  else setView(view.start + (what === "left" ? -length / 2 : length / 2), view.end + (what === "left" ? -length / 2 : length / 2));
}

function paint(item) {
  const { canvas } = item, width = canvas.clientWidth, height = typeof item.height === "function" ? item.height() : item.height;
  const ratio = window.devicePixelRatio || 1;
  canvas.style.height = height + "px";
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = "12px system-ui, 'DejaVu Sans', sans-serif";
  context.textBaseline = "middle";
  item.draw(context, width, height);
}

// Vertical lines at round times, labelled along the bottom from the start of the window.
function timeAxis(context, width, top, bottom) {
  const span = view.end - view.start;
  const rough = span / Math.max(3, (width - LEFT - RIGHT) / 110);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= rough);
  context.textAlign = "center";
  for (let time = Math.ceil((view.start - whole[0]) / step) * step; time <= view.end - whole[0]; time += step) {
    const x = place(whole[0] + time, width);
    context.fillStyle = css("line");
    context.fillRect(x, top, 1, bottom - top);
    context.fillStyle = css("muted");
    context.fillText(time === 0 ? "0" : format.time(time), x, bottom + 10);
  }
}

function clipped(context, width, top, bottom, draw) {
  context.save();
  context.beginPath();
  context.rect(LEFT, top, width - LEFT - RIGHT, bottom - top);
  context.clip();
  draw();
  context.restore();
}

// Colours that tell neighbours apart; those of the scheme would run out.
function hue(number) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  return "hsl(" + ((number * 137.508 + 210) % 360).toFixed(1) + " 55% " + (dark ? "62%" : "46%") + ")";
}

// Timeline ------------------------------------------------------------------------------------------------------------

const ROW = 15;
const engineOrder = ["tensor", "vector", "scalar"];
const trackOrder = data.tracks.map((_, number) => number).sort((a, b) => {
  const [x, y] = [data.tracks[a], data.tracks[b]];
  const rank = (track) => (engineOrder.includes(track.engine) ? engineOrder.indexOf(track.engine) : 9);
  return x.core - y.core || rank(x) - rank(y) || x.engine.localeCompare(y.engine, "en", { numeric: true });
});
// Bars of requests: in the whole machine, then in each stage. Those that overlap stand one above the other.
const LANE = 7, LANES_MAX = 24;
const barGroups = [];
let barsBottom = 4;
function addBars(name, what, bars, most) {
  const free = [], placed = [];
  for (const [request, start, end] of bars) {
    if (end < 0 || start > whole[1]) continue;
    let lane = free.findIndex((time) => time <= start);
    if (lane < 0) lane = free.length;
    free[lane] = end;
    if (lane < most) placed.push({ request, start, end, top: barsBottom + lane * LANE });
  }
  if (!placed.length) return;
  const high = Math.max(2, Math.min(free.length, most)) * LANE;
  barGroups.push({ name, what, top: barsBottom, high, bars: placed });
  barsBottom += high + 4;
}
addBars("requests", "from the host and back", data.requests.map(([request, start, end]) => [request, start - data.window.start_ps, end - data.window.start_ps]), LANES_MAX);
barsBottom += 6;
for (const stage of data.stages) addBars("@" + stage.name, "in stage @" + stage.name, stage.spans, 4);
const trackRows = [];
{
  let top = barsBottom + 8, before = null;
  for (const number of trackOrder) {
    const track = data.tracks[number];
    if (before !== null && before !== track.core) top += 12;
    // The first row of a core has its number, the next one the names of its stages.
    const row = before === track.core ? trackRows[trackRows.length - 1].row + 1 : 0;
    trackRows.push({ number, track, top, row });
    before = track.core;
    top += ROW;
  }
}
const timelineHeight = (trackRows.length ? trackRows[trackRows.length - 1].top + ROW : 0) + 22;

function sliceColour(slice) {
  const how = byId("colour-by").value;
  if (how === "request") return hue(slice[3]);
  return how === "layer" ? hue(slice[2]) : css(colourOf(data.layers[slice[2]].binding));
}

function drawTimeline(context, width, height) {
  const colours = new Map();
  const key = byId("colour-by").value === "request" ? 3 : 2;
  timeAxis(context, width, 0, height - 20);
  for (const { name, top, high, bars } of barGroups) {
    context.textAlign = "left";
    context.fillStyle = css("ink");
    context.fillText(name, 0, top + high / 2, LEFT - 8);
    clipped(context, width, top, top + high, () => {
      for (const bar of bars) {
        const x = place(bar.start, width);
        context.fillStyle = hue(bar.request);
        context.globalAlpha = 0.75;
        context.fillRect(x, bar.top, Math.max(0.6, place(bar.end, width) - x), LANE - 1.5);
        context.globalAlpha = 1;
      }
    });
  }
  for (const { track, top, row } of trackRows) {
    context.textAlign = "left";
    context.fillStyle = css("ink");
    if (row === 0) context.fillText("core " + track.core, 0, top + ROW / 2);
    if (row === 1) {
      const names = [...new Set(data.tracks.filter((each) => each.core === track.core).map((each) => "@" + each.stage))].join(" ");
      context.fillStyle = css("muted");
      context.fillText(names, 0, top + ROW / 2, LEFT - 58);
    }
    context.textAlign = "right";
    context.fillStyle = css("muted");
    context.fillText(track.engine, LEFT - 8, top + ROW / 2);
    context.fillStyle = css("soft");
    context.fillRect(LEFT, top + 1, width - LEFT - RIGHT, ROW - 2);
    context.textAlign = "left";
    context.fillStyle = css("muted");
    context.fillText(format.percent(track.busy_ps / (whole[1] - whole[0])), width - RIGHT + 8, top + ROW / 2);
    clipped(context, width, top, top + ROW, () => {
      for (const slice of track.slices) {
        if (slice[1] < view.start || slice[0] > view.end) continue;
        if (!colours.has(slice[key])) colours.set(slice[key], sliceColour(slice));
        context.fillStyle = colours.get(slice[key]);
        const x = place(slice[0], width);
        context.fillRect(x, top + 1, Math.max(0.6, place(slice[1], width) - x), ROW - 2);
      }
    });
  }
}

function findSlice(x, y, width) {
  const row = trackRows.find(({ top }) => y >= top && y < top + ROW);
  const time = timeAt(x, width);
  if (!row) {
    for (const { what, bars } of barGroups) {
      const bar = bars.find(({ start, end, top }) => y >= top && y < top + LANE && start <= time && time <= end);
      if (bar) return `request ${bar.request}\n${format.time(bar.end - bar.start)} ${what}` + (bar.start <= 0 || bar.end >= whole[1] ? ", as far as shown" : "");
    }
    return "";
  }
  const near = (2 * (view.end - view.start)) / width;
  const slice = row.track.slices.find((each) => each[0] - near <= time && time <= each[1] + near);
  const who = "core " + row.track.core + " " + row.track.engine + " (@" + row.track.stage + ")";
  if (!slice) return who;
  const layer = data.layers[slice[2]];
  return layer.name + "\n" + who + ", request " + slice[3] + "\n" + format.time(slice[1] - slice[0]) + " from " + format.time(slice[0] - whole[0])
    + (slice[4] < slice[1] - slice[0] ? ", " + format.time(slice[4]) + " at work" : "") + "\nlayer bound by " + layer.binding;
}

// Servers -------------------------------------------------------------------------------------------------------------

const SERVER_ROW = 34;
const servers = Object.keys(data.servers.load).sort((a, b) => {
  const rank = (name) => ["dram", "dma", "link", "host"].indexOf(name.split(" ")[0]);
  return rank(a) - rank(b) || a.localeCompare(b, "en", { numeric: true });
});

function drawServers(context, width, height) {
  timeAxis(context, width, 0, height - 20);
  servers.forEach((name, row) => {
    const top = row * SERVER_ROW + 3, size = SERVER_ROW - 8, values = data.servers.load[name];
    context.textAlign = "right";
    context.fillStyle = css("ink");
    context.fillText(name, LEFT - 8, top + size / 2);
    context.textAlign = "left";
    context.fillStyle = css("muted");
    context.fillText(format.rate(data.servers.rates[name]), width - RIGHT + 8, top + size / 2);
    context.fillStyle = css("soft");
    context.fillRect(LEFT, top, width - LEFT - RIGHT, size);
    clipped(context, width, top, top + size, () => {
      context.fillStyle = css(colourOf(name));
      const length = (whole[1] - whole[0]) / values.length;
      values.forEach((value, bin) => {
        const x = place(whole[0] + bin * length, width), end = place(whole[0] + (bin + 1) * length, width);
        context.fillRect(x, top + size * (1 - value), end - x + 0.4, size * value);
      });
    });
  });
}

function findServer(x, y, width) {
  const name = servers[Math.floor(y / SERVER_ROW)];
  if (!name) return "";
  const values = data.servers.load[name];
  const bin = Math.floor(((timeAt(x, width) - whole[0]) / (whole[1] - whole[0])) * values.length);
  return bin >= 0 && bin < values.length ? name + ": " + format.percent(values[bin]) + " of " + format.rate(data.servers.rates[name]) : name;
}

// Memory --------------------------------------------------------------------------------------------------------------

const STRIP = 34;
let memoryCore = data.memory.length ? data.memory[0].core : 0;
const memoryOf = (space) => data.memory.find((each) => each.core === memoryCore && each.space === space);

function drawMemory(space) {
  return (context, width, height) => {
    const memory = memoryOf(space);
    const bottom = height - 20, top = STRIP + 8, up = (address) => bottom - (address / memory.capacity) * (bottom - top);
    // In use, above the map.
    context.fillStyle = css("soft");
    context.fillRect(LEFT, 2, width - LEFT - RIGHT, STRIP);
    context.textAlign = "right";
    context.fillStyle = css("ink");
    context.fillText("in use", LEFT - 8, 2 + STRIP / 2);
    context.textAlign = "left";
    context.fillStyle = css("muted");
    context.fillText("of " + memory.capacity / 1024 + " KiB", width - RIGHT + 8, 2 + STRIP / 2);
    clipped(context, width, 2, 2 + STRIP, () => {
      const length = (whole[1] - whole[0]) / memory.most.length;
      context.fillStyle = css("muted");
      memory.most.forEach((value, bin) => {
        const x = place(whole[0] + bin * length, width), share = value / memory.capacity;
        context.fillRect(x, 2 + STRIP * (1 - share), place(whole[0] + (bin + 1) * length, width) - x + 0.4, STRIP * share);
      });
    });
    timeAxis(context, width, top, bottom);
    context.textAlign = "right";
    for (let part = 0; part <= 4; part++) {
      const address = (memory.capacity * part) / 4;
      context.fillStyle = css("line");
      context.fillRect(LEFT, up(address), width - LEFT - RIGHT, 1);
      context.fillStyle = css("muted");
      context.fillText(address / 1024 + " KiB", LEFT - 8, Math.min(bottom - 6, Math.max(top + 6, up(address))));
    }
    clipped(context, width, top, bottom, () => {
      const colours = {};
      for (const [start, end, address, size, buffer] of memory.rectangles) {
        if (end < view.start || start > view.end) continue;
        const kind = memory.buffers[buffer].kind;
        colours[kind] = colours[kind] || css(kind);
        context.fillStyle = colours[kind];
        const x = place(start, width), y = up(address + size), wide = Math.max(0.6, place(end, width) - x), high = Math.max(0.8, up(address) - y);
        context.globalAlpha = 0.8;
        context.fillRect(x, y, wide, high);
        context.globalAlpha = 1;
        if (high > 5 && wide > 5) { context.strokeStyle = css("card"); context.lineWidth = 0.7; context.strokeRect(x, y, wide, high); }
      }
      if (memory.map_end_ps < whole[1]) {
        const x = place(memory.map_end_ps, width);
        context.fillStyle = css("muted");
        context.textAlign = "left";
        if (x < width - RIGHT) context.fillText("the map ends here; zoom in before", x + 6, (top + bottom) / 2);
      }
    });
  };
}

function findMemory(space, heightOf) {
  return (x, y, width) => {
    const memory = memoryOf(space), bottom = heightOf - 20, top = STRIP + 8, time = timeAt(x, width);
    if (y < top || y > bottom || x < LEFT || x > width - RIGHT) return "";
    const address = ((bottom - y) / (bottom - top)) * memory.capacity;
    const hit = memory.rectangles.find(([start, end, low, size]) => start <= time && time <= end && low <= address && address < low + size);
    if (!hit) return "free at " + Math.floor(address);
    const buffer = memory.buffers[hit[4]];
    return buffer.name + " (" + buffer.kind + ")\n" + hit[3] + " bytes of " + buffer.bytes + ", at " + hit[2] + ", " + buffer.partitions + " partitions\n"
      + (buffer.layer && buffer.layer !== buffer.name ? "for " + buffer.layer + "\n" : "")
      + format.time(hit[1] - hit[0]) + " from " + format.time(hit[0] - whole[0]) + (hit[5] >= 0 ? ", written for request " + hit[5] : "");
  };
}

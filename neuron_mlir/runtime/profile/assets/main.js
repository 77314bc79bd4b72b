// What the page says, section by section.
const report = data.report;

byId("title").textContent = report.program + (data.file ? " · " + data.file.split("/").pop() : "");
byId("subtitle").textContent = `${report.cores} ${report.cores === 1 ? "core" : "cores"} on ${report.chips} ${report.chips === 1 ? "chip" : "chips"} of ${report.machine}, ${report.requests} requests`
  + (data.in_flight === null ? "" : `, ${data.in_flight} under way at most`) + (data.producer ? `; ${data.producer}` : "");

function card(title, path, kind, note) {
  return element("div", { class: "card" }, element("span", {}, title), shown("b", path, kind), element("span", {}, note || ""));
}
byId("cards").append(
  card("throughput, requests", "report.throughput_per_s", "per_s", report.steady_state.split(",")[0]),
  card("latency, median", "report.latency_ms.p50", "ms", "under load, queueing included"),
  card("latency, 99th percentile", "report.latency_ms.p99", "ms"),
  card("latency, machine empty", "report.latency_ms.first", "ms"),
  card("DRAM of a request", "report.dram_bytes_per_inference", "bytes"),
  card("loading weights", "report.load_ms", "ms", "once"),
  card("bound of this program", "report.bound.throughput_per_s", "per_s", "by " + report.bound.resource),
  card("bound of the model", "report.model_bound.throughput_per_s", "per_s", "by " + report.model_bound.resource),
);
{
  const reached = report.throughput_per_s / report.bound.throughput_per_s;
  const layer = data.layers.reduce((a, b) => (b.time_ps > a.time_ps ? b : a), data.layers[0]);
  byId("verdict").textContent = `The program runs at ${format.percent(reached)} of its own bound: ${report.bound.resource} (${report.bound.binding}) cannot serve more than ${format.per_s(report.bound.throughput_per_s)}.`
    + (layer ? ` The layer that takes longest is ${layer.name}: ${format.time(layer.time_ps)} (${format.percent(layer.share)} of all layers), bound by ${layer.binding}.` : "");
}
{
  const names = Object.keys(report.resource_utilization).sort((a, b) => report.resource_utilization[b] - report.resource_utilization[a]);
  const rows = names.map((name) => {
    const cell = element("td", { class: "num", "data-format": "percent", "data-value": String(report.resource_utilization[name]) }, meter(report.resource_utilization[name], colourOf(name)), format.percent(report.resource_utilization[name]));
    return element("tr", {}, element("th", { scope: "row" }, name), cell);
  });
  byId("resources").append(element("table", {}, element("caption", {}, "Shared by all cores"), element("tbody", {}, ...rows)));
  const engines = ["tensor", "scalar", "vector", "dma"];
  const cores = Object.keys(report.engine_utilization);
  const lines = cores.map((core) => element("tr", {}, element("th", { scope: "row" }, core), ...engines.map((engine) => {
    const value = report.engine_utilization[core][engine];
    return value == null ? element("td", {}) : shown("td", `report.engine_utilization.${core}.${engine}`, "percent", { class: "num" });
  })));
  const head = element("thead", {}, element("tr", {}, element("th", { scope: "col" }, ""), ...engines.map((engine) => element("th", { scope: "col", class: "num" }, engine))));
  byId("engines").append(element("table", {}, element("caption", {}, "Engines of each core"), head, element("tbody", {}, ...lines)));
}

// Charts over time
byId("timeline-note").textContent = `${format.time(whole[1] - whole[0])} of the run, from ${format.time(data.window.start_ps)} after the weights were there; requests ${data.window.first_request} to ${data.window.last_request} are traced.`
  + (data.window.joined_ps ? ` Instructions of a layer closer than ${format.time(data.window.joined_ps)} are drawn as one.` : "") + " Drag over a chart to zoom, double-click for all; or focus it and use arrow keys, + and -.";
byId("timeline-caption").textContent = "Above, requests from the host's first byte to its last, and in each stage from its first instruction to its last result; below, one row for each engine and DMA queue, with the share of this time that it is at work.";
byId("timeline-canvas").setAttribute("aria-label", "Timeline of " + data.tracks.length + " streams: " + data.tracks.map((track) => `core ${track.core} ${track.engine} ${format.percent(track.busy_ps / (whole[1] - whole[0]))}`).join(", "));
byId("servers-canvas").setAttribute("aria-label", "Load over time of " + servers.join(", ") + "; mean shares are in the table of the summary");
const timelineChart = chart("timeline-canvas", timelineHeight, drawTimeline, findSlice);
chart("servers-canvas", servers.length * SERVER_ROW + 22, drawServers, findServer);
chart("sbuf-canvas", 340, drawMemory("sbuf"), findMemory("sbuf", 340));
chart("psum-canvas", 210, drawMemory("psum"), findMemory("psum", 210));
byId("colour-by").addEventListener("change", () => paint(timelineChart));
document.querySelectorAll("[data-zoom]").forEach((button) => button.addEventListener("click", () => zoom(button.dataset.zoom)));

// Stages
sortedTable(byId("stages-table"), `${data.stages.length} ${data.stages.length === 1 ? "stage" : "stages"}, copies each by itself`, [
  words("stages", "name", "stage", "", (row) => element("td", {}, "@" + data.stages[row].name)),
  numbers("stages", "core", "core", "count"),
  numbers("stages", "busiest_ps", "busiest engine", "time", "how long it is at work for a request"),
  words("stages", "busiest", "which", "", (row) => element("td", {}, dot(colourOf(data.stages[row].busiest)), data.stages[row].busiest)),
  ...["tensor", "scalar", "vector", "dma"].map((engine) => numbers("stages", "busy_ps." + engine, engine, "time", "at work for a request")),
  numbers("stages", "elapsed_ps", "elapsed", "time", "from its first instruction for a request to its last result, in the median"),
], data.stages.map((_, row) => row), { sort: 2, limit: 20 });

// Layers
const layerName = (row) => {
  const layer = data.layers[row], rest = layer.nodes.length - 1;
  return element("td", { class: "name", title: layer.nodes.join("\n") }, layer.name + (rest ? ` +${rest}` : ""));
};
sortedTable(byId("layers-table"), `${data.layers.length} layers`, [
  numbers("layers", "time_ps", "time", "time", "of what binds it"),
  words("layers", "name", "layer", "first node of the model; others in the tooltip", layerName),
  { title: "stage", kind: "text", value: (row) => data.layers[row].stages.join(", "), cell: (row) => element("td", {}, data.layers[row].stages.join(", ")) },
  words("layers", "binding", "bound by", "", (row) => element("td", {}, dot(colourOf(data.layers[row].binding)), data.layers[row].binding)),
  numbers("layers", "share", "share", "percent", "of the sum of all layers' times"),
  numbers("layers", "elapsed_ps", "elapsed", "time", "from its first instruction to its last result"),
  numbers("layers", "operations", "operations", "big"),
  numbers("layers", "dram_bytes", "DRAM", "bytes"),
  numbers("layers", "intensity", "ops/byte", "number", "operations per byte of DRAM; empty: it moves none"),
  numbers("layers", "ops_per_s", "rate", "ops"),
  numbers("layers", "roof_ops_per_s", "roof", "ops", "what its cores and DRAM allow at that intensity"),
  numbers("layers", "mac_utilization", "array", "percent", "multiply-adds over those of the whole array while the TensorEngine works for the layer"),
  numbers("layers", "pe_rows", "rows", "number", "of the PE array in use, on average"),
  numbers("layers", "pe_columns", "columns", "number", "of the PE array in use, on average"),
  numbers("layers", "array_ps.loads", "loads", "time", "loads of weights that were not hidden"),
], data.layers.map((_, row) => row), { limit: 25, filter: (row) => data.layers[row].nodes.join(" ") + data.layers[row].name });

// Memory
{
  const select = byId("memory-core");
  [...new Set(data.memory.map((each) => each.core))].forEach((core) => select.append(element("option", { value: core }, String(core))));
  for (const [kind, text] of Object.entries(data.memory_kinds)) byId("memory-legend").append(element("span", {}, dot(kind), text));
  select.addEventListener("change", () => { memoryCore = Number(select.value); showMemory(); drawn.forEach(paint); });
}
function showMemory() {
  const rows = ["sbuf", "psum"].map((space) => {
    const number = data.memory.findIndex((each) => each.core === memoryCore && each.space === space);
    const cells = ["peak", "mean", "capacity"].map((key) => shown("td", `memory.${number}.${key}`, "bytes", { class: "num" }));
    return element("tr", {}, element("th", { scope: "row" }, space.toUpperCase()), ...cells);
  });
  const head = ["", "most in use", "mean", "capacity"].map((title, column) => element("th", { scope: "col", class: column ? "num" : null }, title));
  byId("memory-numbers").replaceChildren(element("table", {}, element("caption", {}, `Core ${memoryCore}, bytes of a partition within the window`), element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)));
  for (const space of ["sbuf", "psum"]) {
    const memory = memoryOf(space);
    byId(space + "-caption").textContent = `${space.toUpperCase()} of core ${memoryCore}, addresses upwards.`;
    byId(space + "-canvas").setAttribute("aria-label", `${space.toUpperCase()} of core ${memoryCore}: ${memory.buffers.length} buffers, at most ${memory.peak} of ${memory.capacity} bytes of a partition in use`);
  }
  const number = data.memory.findIndex((each) => each.core === memoryCore && each.space === "sbuf");
  if (number < 0) return;
  const list = `memory.${number}.buffers`;
  sortedTable(byId("buffers-table"), `Buffers in SBUF of core ${memoryCore}`, [
    numbers(list, "bytes", "bytes", "count", "of a partition, all slots"),
    words(list, "name", "buffer", "", (row) => element("td", { class: "name" }, get(list)[row].name)),
    words(list, "kind", "kind", "", (row) => element("td", {}, dot(get(list)[row].kind), get(list)[row].kind)),
    numbers(list, "address", "address", "count"),
    numbers(list, "partitions", "partitions", "count"),
    words(list, "layer", "layer", "", (row) => element("td", { class: "name" }, get(list)[row].layer)),
  ], get(list).map((_, row) => row), { limit: 12, filter: (row) => get(list)[row].name + get(list)[row].layer });
}
showMemory();

// Waits
sortedTable(byId("stalls-table"), "Waits within the window", [
  numbers("stalls", "time_ps", "stood still", "time"),
  words("stalls", "stream", "stream"),
  words("stalls", "for", "waiting for"),
  numbers("stalls", "times", "times", "count"),
  { title: "share", kind: "percent", help: "of the window", value: (row) => data.stalls[row].time_ps, cell: (row) => element("td", { class: "num" }, meter(data.stalls[row].time_ps / (whole[1] - whole[0])), format.percent(data.stalls[row].time_ps / (whole[1] - whole[0]))) },
], data.stalls.map((_, row) => row), { limit: 16, filter: (row) => data.stalls[row].stream + data.stalls[row].for });

// Decisions
function decision(path) {
  const each = get(path), unit = each.certificate ? each.certificate.unit : "";
  if (each.certificate) {
    const kind = unit === "ps" ? "time" : unit.startsWith("bytes") ? "bytes" : "number";
    const proof = each.certificate.gap === 0 ? " (proven best)" : `, gap ${format.percent(each.certificate.gap)}`;
    return [shown("span", path + ".certificate.objective", kind), ", bound ", shown("span", path + ".certificate.lower_bound", kind), proof];
  }
  if (typeof each.value === "number") return [shown("span", path + ".value", each.key.endsWith("_ps") ? "time" : each.key.endsWith("bytes") ? "bytes" : "big")];
  return [Array.isArray(each.value) ? each.value.join(", ") : String(each.value)];
}
{
  const body = byId("decisions-body"), decided = data.decisions;
  const lines = decided.program.map((each, number) => element("tr", {},
    element("th", { scope: "row" }, each.key), element("td", {}, ...decision(`decisions.program.${number}`), each.certificate ? `; ${each.certificate.method}` : null), element("td", { class: "muted" }, each.meaning)));
  body.append(lines.length ? element("table", {}, element("caption", {}, "The program"), element("tbody", {}, ...lines)) : element("p", { class: "note" }, "The program records no decisions."));
  // Stages side by side: a row for each, a column for each decision that any of them has.
  const keys = [...new Map(decided.stages.flatMap((stage) => stage.decisions.map((each) => [each.key, each.meaning])))];
  const head = element("tr", {}, element("th", { scope: "col" }, "stage"), element("th", { scope: "col" }, "core"), ...keys.map(([key, meaning]) => element("th", { scope: "col", title: meaning }, key)));
  const rows = decided.stages.map((stage, number) => element("tr", {}, element("th", { scope: "row" }, "@" + stage.name), element("td", {}, stage.cores.join(", ")), ...keys.map(([key]) => {
    const index = stage.decisions.findIndex((each) => each.key === key);
    if (index < 0) return element("td", {}, "");
    const each = stage.decisions[index];
    return element("td", { title: each.certificate ? each.certificate.method : null }, ...decision(`decisions.stages.${number}.decisions.${index}`));
  })));
  body.append(element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Decisions for each stage" }, element("table", {}, element("caption", {}, "Stages; how each was found is in the tooltips"), element("thead", {}, head), element("tbody", {}, ...rows))));
  body.append(element("dl", { class: "note" }, ...keys.filter(([, meaning]) => meaning).flatMap(([key, meaning]) => [element("dt", {}, key), element("dd", {}, meaning)])));
  if (decided.passes.length) {
    const rows = decided.passes.map((step) => {
      const counted = Object.entries(step.statistics).filter(([, value]) => value !== 0);
      return element("tr", {}, element("th", { scope: "row" }, step.pass), element("td", {}, counted.map(([name, value]) => `${name}: ${typeof value === "number" ? format.count(value) : value}`).join("; ") || "nothing to do"));
    });
    body.append(element("table", {}, element("caption", {}, "Passes, and what each has counted"), element("tbody", {}, ...rows)));
  } else body.append(element("p", { class: "note" }, "What each pass counted is recorded in artifacts (.neff), not in modules from text."));
  body.append(element("p", { class: "note" }, "Layers that were fused into one are one row of the table of layers; its tooltips name their nodes. Not recorded, beyond the counts above: which layers run depth first together and in what tiles, and what a search has turned down."));
  const options = Object.entries(decided.options).filter(([, value]) => value !== null);
  if (options.length) body.append(element("details", {}, element("summary", {}, "Options it was compiled with"), element("table", {}, element("tbody", {}, ...options.map(([key, value]) => element("tr", {}, element("th", { scope: "row" }, key), element("td", { class: "name" }, typeof value === "object" ? JSON.stringify(value) : String(value))))))));
}
byId("machine-table").append(element("table", {}, element("tbody", {}, ...Object.keys(data.machine).map((key) => {
  const value = data.machine[key];
  return element("tr", {}, element("th", { scope: "row" }, key), element("td", { class: "num" }, typeof value === "number" ? format.count(value) : String(value)));
}))));

drawRoofline();
setView(...whole);
addEventListener("resize", () => drawn.forEach(paint));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(paint));
document.documentElement.setAttribute("data-ready", "true");

// The roofline: operations per second over operations per byte of DRAM, both logarithmic, as SVG.
const SVG = "http://www.w3.org/2000/svg";
function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function drawRoofline() {
  const W = 1160, H = 470, left = 92, right = 130, top = 18, bottom = 62;
  const roof = data.roofline, peak = roof.tensor_ops_per_s + roof.lane_ops_per_s;
  const most = data.layers.reduce((value, layer) => Math.max(value, layer.roof_ops_per_s, layer.ops_per_s), peak);
  const placed = data.layers.map((layer, number) => ({ layer, number }));
  const known = placed.filter(({ layer }) => layer.intensity && layer.ops_per_s);
  const list = known.map(({ layer }) => layer.intensity);
  const low = Math.log10(Math.min(1, ...list)) - 0.3, high = Math.log10(Math.max(2 * peak / roof.dram_bytes_per_s, ...list)) + 0.3;
  const rates = placed.map(({ layer }) => layer.ops_per_s).filter((rate) => rate > 0);
  const least = Math.max(Math.log10(peak) - 6, Math.floor(Math.log10(Math.min(peak / 1000, ...rates)))), greatest = Math.log10(most) + 0.15;
  const x = (value) => left + ((Math.log10(value) - low) / (high - low)) * (W - left - right);
  const y = (value) => H - bottom - ((Math.max(Math.log10(value), least) - least) / (greatest - least)) * (H - top - bottom);
  const root = svg("svg", { viewBox: `0 0 ${W} ${H}`, width: "100%", role: "group", "aria-label": "Roofline: layers by operations per byte of DRAM and operations per second" });
  for (let power = Math.ceil(low); power <= high; power++) {
    const at = x(10 ** power);
    root.append(svg("line", { x1: at, x2: at, y1: top, y2: H - bottom, class: "axis" }), svg("text", { x: at, y: H - bottom + 18, "text-anchor": "middle" }, digits(10 ** power)));
  }
  for (let power = Math.ceil(least); power <= greatest; power++) {
    const at = y(10 ** power);
    root.append(svg("line", { x1: left, x2: W - right, y1: at, y2: at, class: "axis" }), svg("text", { x: left - 8, y: at + 4, "text-anchor": "end" }, format.ops(10 ** power)));
  }
  root.append(svg("text", { x: (left + W - right) / 2, y: H - 22, "text-anchor": "middle" }, "operations per byte of DRAM"));
  function ceiling(bandwidth, top_, name, thin) {
    const knee = top_ / bandwidth, from = Math.max(10 ** low, 10 ** least / bandwidth);
    root.append(svg("polyline", { points: `${x(from)},${y(from * bandwidth)} ${x(knee)},${y(top_)} ${W - right},${y(top_)}`, class: thin ? "roof thin" : "roof" }));
    const at = Math.sqrt(from * knee), angle = (Math.atan2(y(at * bandwidth) - y(at * 2 * bandwidth), x(at) - x(at * 2)) * 180) / Math.PI + 180;
    root.append(svg("text", { x: x(at), y: y(at * bandwidth) + (thin ? 16 : -8), transform: `rotate(${angle} ${x(at)} ${y(at * bandwidth)})`, "text-anchor": "middle", class: thin ? "muted" : "" }, name));
  }
  ceiling(roof.dram_bytes_per_s, peak, `DRAM of a chip, ${format.rate(roof.dram_bytes_per_s)}`, false);
  ceiling(roof.dma_bytes_per_s, peak, `DMA engines of a core, ${format.rate(roof.dma_bytes_per_s)}`, true);
  root.append(svg("text", { x: W - right - 6, y: y(peak) - 7, "text-anchor": "end" }, `a core, ${format.ops(peak)}`));
  root.append(svg("text", { x: W - right / 2, y: H - bottom + 18, "text-anchor": "middle", class: "muted" }, "no DRAM traffic"));
  const biggest = Math.max(...data.layers.map((layer) => layer.time_ps), 1);
  let column = 0;
  for (const { layer, number } of placed) {
    const inside = layer.intensity !== null;
    // Layers without traffic stand side by side in the margin; those that compute nothing at the bottom.
    const cx = inside ? x(Math.max(layer.intensity, 10 ** low)) : W - right + 14 + ((column++ * 37) % (right - 28));
    const cy = layer.ops_per_s ? y(layer.ops_per_s) : H - bottom;
    const text = `${layer.name}: ${format.ops(layer.ops_per_s)}, ` + (inside ? `${digits(layer.intensity)} operations per byte` : "no DRAM traffic")
      + `, ${format.time(layer.time_ps)}, bound by ${layer.binding}, roof ${format.ops(layer.roof_ops_per_s)}`;
    const mark = svg("circle", { cx, cy, r: 3 + 6 * Math.sqrt(layer.time_ps / biggest), class: "layer", tabindex: "0", role: "img", "aria-label": text, "data-layer": number });
    mark.style.fill = "var(--" + colourOf(layer.binding) + ")";
    mark.addEventListener("pointermove", (event) => showTip(text.replace(": ", "\n").replaceAll(", ", "\n"), event.clientX, event.clientY));
    mark.addEventListener("pointerleave", () => showTip(""));
    mark.addEventListener("focus", () => { const box = mark.getBoundingClientRect(); showTip(text.replaceAll(", ", "\n"), box.right, box.bottom); });
    mark.addEventListener("blur", () => showTip(""));
    root.append(mark);
  }
  byId("roofline-chart").replaceChildren(root);
  const bindings = [...new Set(data.layers.map((layer) => layer.binding))];
  const caption = byId("roofline-caption");
  caption.replaceChildren("One mark for each layer, the larger the longer it takes. Operations are two for each multiply-add, and one for each element that the ScalarEngine or VectorEngine goes over. ",
    ...bindings.map((name) => element("span", { class: "legend" }, element("span", {}, dot(colourOf(name)), "bound by " + name))));
}

// Reading the data, writing numbers, building elements. Text goes in as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function get(path) {
  return path.split(".").reduce((value, key) => (value == null ? value : value[key]), data);
}

function scaled(value, units) {
  for (const [factor, unit] of units) if (Math.abs(value) >= factor) return digits(value / factor) + " " + unit;
  const [factor, unit] = units[units.length - 1];
  return digits(value / factor) + " " + unit;
}

// Four significant digits, without an exponent in the range that tables show.
function digits(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(3);
  const places = Math.max(0, 3 - Math.floor(Math.log10(size)));
  return Number(value.toFixed(Math.min(places, 8))).toString();
}

const format = {
  time: (ps) => ps === 0 ? "0 s" : scaled(ps, [[1e12, "s"], [1e9, "ms"], [1e6, "µs"], [1e3, "ns"], [1, "ps"]]),
  ms: (ms) => format.time(ms * 1e9),
  bytes: (value) => scaled(value, [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]]),
  count: (value) => (Number.isInteger(value) ? value.toLocaleString("en-US") : digits(value)),
  big: (value) => (value < 1e4 ? format.count(value) : scaled(value, [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])),
  ops: (value) => (value ? scaled(value, [[1e12, "Top/s"], [1e9, "Gop/s"], [1e6, "Mop/s"], [1, "op/s"]]) : "0 op/s"),
  rate: (value) => scaled(value, [[1e9, "GB/s"], [1e6, "MB/s"], [1, "B/s"]]),
  percent: (value) => (value * 100).toFixed(1) + "%",
  number: (value) => digits(value),
  per_s: (value) => digits(value) + "/s",
  text: (value) => String(value),
};

function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) if (value != null && value !== false) node.setAttribute(key, value === true ? "" : value);
  node.append(...children.filter((child) => child != null));
  return node;
}

// A number of the data, marked with where it comes from, so that page and data can be compared.
function shown(tag, path, kind, attributes) {
  const value = get(path);
  if (value == null) return element(tag, attributes, "");
  const node = element(tag, { ...attributes, "data-path": path, "data-format": kind }, format[kind](value));
  if (typeof value === "number") node.setAttribute("data-value", String(value));
  return node;
}

function dot(colour) {
  const node = element("span", { class: "dot", "aria-hidden": "true" });
  node.style.background = "var(--" + colour + ")";
  return node;
}

function meter(share, colour) {
  const inside = element("i");
  inside.style.width = Math.min(100, share * 100).toFixed(1) + "%";
  if (colour) inside.style.background = "var(--" + colour + ")";
  return element("span", { class: "meter", "aria-hidden": "true" }, inside);
}

// What draws the engine, server or link of that name.
function colourOf(name) {
  const kind = name.split(" ")[0].replace(/\d+$/, "");
  return { link: "link-server", tensor: "tensor", scalar: "scalar", vector: "vector", dma: "dma", dram: "dram" }[kind] || "host";
}

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}

// A table whose columns sort. Columns: {title, kind, value(row), cell(row), help}; rows keep their place in the data.
function sortedTable(place, caption, columns, rows, options) {
  const settings = { sort: 0, descending: true, limit: 0, filter: null, ...options };
  const body = element("tbody");
  const heads = columns.map((column, number) => {
    const button = element("button", { type: "button", title: column.help }, column.title);
    button.addEventListener("click", () => {
      settings.descending = settings.sort === number ? !settings.descending : column.kind !== "text";
      settings.sort = number;
      fill();
    });
    return element("th", { scope: "col", class: column.kind === "text" ? null : "num" }, button);
  });
  const more = element("button", { type: "button" });
  const search = settings.filter ? element("input", { type: "search", "aria-label": "Filter " + caption, placeholder: "filter by name" }) : null;
  let limit = settings.limit;

  function fill() {
    const key = columns[settings.sort].value;
    const sign = settings.descending ? -1 : 1;
    const wanted = search ? search.value.toLowerCase() : "";
    const chosen = rows.filter((row) => !wanted || settings.filter(row).toLowerCase().includes(wanted));
    chosen.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x == null || y == null) return (x == null) - (y == null);
      return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
    });
    const kept = limit ? chosen.slice(0, limit) : chosen;
    body.replaceChildren(...kept.map((row) => element("tr", {}, ...columns.map((column) => column.cell(row)))));
    heads.forEach((head, number) => {
      if (number === settings.sort) head.setAttribute("aria-sort", settings.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    more.hidden = !limit || chosen.length <= limit;
    more.textContent = "Show all " + chosen.length;
  }

  more.addEventListener("click", () => { limit = 0; fill(); });
  if (search) search.addEventListener("input", fill);
  fill();
  const table = element("table", {}, element("caption", {}, caption), element("thead", {}, element("tr", {}, ...heads)), body);
  place.replaceChildren(...[search, element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, table), more].filter(Boolean));
}

// A column of numbers at `key` of the rows of a list in the data.
function numbers(list, key, title, kind, help) {
  return {
    title, kind, help,
    value: (row) => key.split(".").reduce((value, part) => (value == null ? value : value[part]), get(list)[row]),
    cell: (row) => shown("td", list + "." + row + "." + key, kind, { class: "num" }),
  };
}

function words(list, key, title, help, make) {
  return {
    title, kind: "text", help,
    value: (row) => String(get(list)[row][key]),
    cell: (row) => (make ? make(row) : element("td", {}, String(get(list)[row][key]))),
  };
}

const tip = byId("tip");
function showTip(text, x, y) {
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.max(4, Math.min(y + 14, innerHeight - tip.offsetHeight - 8)) + "px";
}

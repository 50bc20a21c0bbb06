"use strict";
// What the pages share: reading their data, making elements, and a list of which only the rows in sight exist.
const HEIGHT = 26; // of a row, pixels
const whole = new Intl.NumberFormat("en-US");
const at = (id) => document.getElementById(id);
const number = (x) => (x === null || x === undefined ? "–" : String(x));
const texts = (parts) => parts.map((part) => part[1]).join("\n");

async function unpacked() {
  const letters = atob(at("data").textContent.trim());
  const packed = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) packed[i] = letters.charCodeAt(i); // `from` takes 0.8 s for 10 MB
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// All text from the data becomes text nodes, never markup.
function make(name, attributes, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "style") made.style.cssText = value;
    else made.setAttribute(key, value);
  }
  for (const one of inside) made.append(one instanceof Node ? one : String(one));
  return made;
}

function drawn(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function table(rows, heads) {
  const made = make("table", {});
  if (heads) made.append(make("tr", {}, ...heads.map((one) => make("th", { scope: "col" }, one))));
  for (const row of rows) made.append(make("tr", {}, ...row.map((c) => (c instanceof Node ? c : make("td", {}, c)))));
  return make("div", { class: "scroll" }, made);
}

// Only the rows in sight exist: 20,000 of them would take seconds.
function showRows(shown, chosen, cellsOf, kindOf, choose) {
  const list = at("list"), made = [];
  const first = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - 5);
  const last = Math.min(shown.length, first + Math.ceil(list.clientHeight / HEIGHT) + 10);
  at("all").style.height = `${shown.length * HEIGHT}px`;
  for (let n = first; n < last; n += 1) {
    const i = shown[n];
    const row = make(
      "div",
      {
        class: "row" + kindOf(i) + (i === chosen ? " on" : ""), style: `top:${n * HEIGHT}px`,
        role: "option", "aria-selected": String(i === chosen), "data-place": i,
      },
      ...cellsOf(i)
    );
    row.onclick = () => choose(i);
    made.push(row);
  }
  at("all").replaceChildren(...made);
}

function bringIntoView(n) {
  const list = at("list");
  if (n < 0) return;
  if (n * HEIGHT < list.scrollTop) list.scrollTop = n * HEIGHT;
  const below = (n + 1) * HEIGHT - list.clientHeight;
  if (below > list.scrollTop) list.scrollTop = below;
}

// Arrows, j, k and the page keys go through the list, / goes to the search, Escape leaves the record.
function useKeys(state, choose) {
  const move = (step) => {
    const n = state.shown.indexOf(state.chosen);
    const next = n < 0 ? 0 : Math.max(0, Math.min(state.shown.length - 1, n + step));
    if (state.shown.length) choose(state.shown[next]);
  };
  const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 20, PageUp: -20 };
  document.onkeydown = (event) => {
    const typing = ["INPUT", "SELECT"].includes(event.target.tagName);
    if (event.key === "Escape") { event.target.blur(); choose(null); }
    else if (!typing && event.key === "/") { event.preventDefault(); at("search").focus(); }
    else if (!typing && event.key in steps) { event.preventDefault(); move(steps[event.key]); }
  };
}

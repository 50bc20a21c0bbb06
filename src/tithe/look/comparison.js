(async () => {
  const data = await unpacked();
  const TALL = 260, EDGE = 14, NEAR = 12; // pixels of the plot, around it, and from a click to a point
  const count = data.row.length;
  // What is shown: the pair, the chosen record, and by what the list is sorted: 0 the difference, 1 and 2 the ranks.
  const state = { pair: 0, chosen: null, shown: [], column: 0, down: true };
  const here = () => data.pairs[state.pair];
  const compared = (i) => here().ranks[0][i] !== null;
  const difference = (i) => here().ranks[1][i] - here().ranks[0][i];
  const searched = data.prompt.map(() => null); // made when something is searched
  const text = (i) => (searched[i] ??= texts([...data.prompt[i], ...data.response[i]]).toLowerCase());

  function matches(i) {
    const category = at("category").value, wanted = at("search").value.toLowerCase();
    if (!compared(i) || (category !== "" && data.category[i] !== Number(category))) return false;
    return !wanted || text(i).includes(wanted);
  }

  function order() {
    const sign = state.down ? -1 : 1;
    const value = state.column ? (i) => here().ranks[state.column - 1][i] : (i) => Math.abs(difference(i));
    state.shown = [];
    for (let i = 0; i < count; i += 1) if (matches(i)) state.shown.push(i);
    state.shown.sort((a, b) => sign * (value(a) - value(b)) || a - b);
  }

  function head() {
    const names = ["difference", ...here().names];
    at("head").replaceChildren(
      ...names.map((name, i) => {
        const button = make("button", { type: "button", title: i ? `sort by the rank in ${name}` : "sort by difference" }, name);
        if (i === state.column) button.append(state.down ? " ▼" : " ▲");
        button.onclick = () => {
          if (i === state.column) state.down = !state.down;
          else Object.assign(state, { column: i, down: i === 0 }); // ranks: the first ones first
          refresh();
        };
        return make("div", { class: "cell" }, button);
      }),
      make("div", { class: "cell text" }, "prompt")
    );
  }

  function rows() {
    const cells = (i) => [
      make("div", { class: "cell" }, (difference(i) > 0 ? "+" : "") + number(difference(i))),
      ...here().ranks.map((ranks) => make("div", { class: "cell" }, number(ranks[i]))),
      make("div", { class: "cell text" }, data.prompt[i].length ? data.prompt[i].at(-1)[1].slice(0, 200) : data.id[i]),
    ];
    showRows(state.shown, state.chosen, cells, () => "", choose);
  }

  // Where a rank is on the plot: the highest left and on top.
  function places() {
    const canvas = at("canvas"), wide = canvas.clientWidth - 2 * EDGE, tall = TALL - 2 * EDGE;
    const most = Math.max(1, here().of - 1);
    return (i) => here().ranks.map((ranks, n) => EDGE + ((ranks[i] - 1) / most) * (n ? tall : wide));
  }

  function plot() {
    const canvas = at("canvas"), scale = window.devicePixelRatio || 1, look = getComputedStyle(document.documentElement);
    const colour = (name) => look.getPropertyValue(name).trim();
    canvas.width = canvas.clientWidth * scale;
    canvas.height = TALL * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.font = "11px system-ui, sans-serif";
    const right = canvas.clientWidth - EDGE, bottom = TALL - EDGE;
    pen.strokeStyle = colour("--line");
    pen.strokeRect(EDGE, EDGE, right - EDGE, bottom - EDGE);
    pen.setLineDash([4, 4]);
    pen.beginPath();
    const x = EDGE + (right - EDGE) / 10, y = EDGE + (bottom - EDGE) / 10; // the top 10 % of each
    pen.moveTo(x, EDGE); pen.lineTo(x, bottom); pen.moveTo(EDGE, y); pen.lineTo(right, y);
    pen.stroke();
    pen.setLineDash([]);
    const place = places(), size = count > 3000 ? 1 : 2;
    pen.fillStyle = colour("--bar");
    const shown = new Set(state.shown);
    for (let i = 0; i < count; i += 1) if (compared(i) && !shown.has(i)) point(pen, place(i), size);
    pen.fillStyle = colour("--kept");
    for (const i of state.shown) point(pen, place(i), size);
    if (state.chosen !== null && compared(state.chosen)) {
      pen.fillStyle = `rgb(${colour("--hard")})`;
      point(pen, place(state.chosen), 5);
    }
    pen.fillStyle = colour("--faint");
    pen.fillText(`rank in ${here().names[0]} →`, EDGE, TALL - 2);
    pen.fillText(`↓ rank in ${here().names[1]}`, EDGE, 10);
  }

  function point(pen, [x, y], size) {
    pen.beginPath();
    pen.arc(x, y, size, 0, 7);
    pen.fill();
  }

  function refresh() {
    order();
    head();
    plot();
    at("list").scrollTop = 0;
    rows();
    at("number").textContent = `${whole.format(state.shown.length)} of ${whole.format(here().of)} shown`;
  }

  function choose(i) {
    state.chosen = i;
    bringIntoView(state.shown.indexOf(i));
    rows();
    plot();
    i === null ? overview() : record(i);
  }

  function overview() {
    const parts = [make("h2", {}, "Do they agree?")];
    if (data.pairs.length > 1) {
      const heads = ["", "", "examples", "Spearman", ...here().tops.map((top) => `top ${top[0]}`)];
      const lines = data.pairs.map((pair) => [...pair.names, whole.format(pair.of), pair.rank, ...pair.tops.map((top) => top[3])]);
      parts.push(table(lines, heads));
    }
    parts.push(make("h3", {}, here().names.join(" and ")), make("p", {}, here().counts), make("p", {}, here().correlation));
    parts.push(table(here().tops, ["top", "records", "in both", "overlap", "95 %", "by chance", "95 %"]));
    for (const line of here().remarks) parts.push(make("p", { class: "faint" }, line));
    if (here().categories.length) {
      const [a, b] = here().names;
      const heads = [data.within, "records", "Spearman", `top 10 %: ${a}`, b, "both", `${b} ranks lower by`];
      parts.push(make("h3", {}, `By ${data.within}`), table(here().categories, heads));
      if (here().left) parts.push(make("p", { class: "faint" }, `${whole.format(here().left)} smaller categories are left out`));
    }
    if (data.differs.length) parts.push(make("h3", {}, "Settings that differ"), table(data.differs, ["", ...data.runs.map((run) => run[0])]));
    parts.push(make("h3", {}, "Runs"), table(data.runs, ["folder", "model", "data set", "examples", "tithe"]));
    for (const note of data.notes) parts.push(make("p", {}, note));
    at("right").replaceChildren(...parts);
  }

  function record(i) {
    const parts = [make("h2", {}, `Record ${data.row[i]}`)];
    parts.push(make("p", { class: "faint" }, `turn ${data.turn[i]}, id ${data.id[i]}`));
    const lines = data.rankings.map((name, n) => [name, number(data.scores[n][i])]);
    if (data.category.length) lines.push([data.within, data.categories[data.category[i]]]);
    if (compared(i)) {
      here().names.forEach((name, n) => lines.push([`rank in ${name}`, `${here().ranks[n][i]} of ${whole.format(here().of)}`]));
    }
    parts.push(table(lines, ["", "score"]));
    for (const [role, text_] of [...data.prompt[i], ...data.response[i]]) parts.push(make("h3", {}, role), make("pre", {}, text_));
    at("right").replaceChildren(...parts);
    at("right").scrollTop = 0;
  }

  at("title").textContent = data.title;
  data.pairs.forEach((pair, i) => at("pair").append(make("option", { value: i }, pair.names.join(" and "))));
  at("pair").hidden = data.pairs.length < 2;
  data.categories.forEach((name, i) => at("category").append(make("option", { value: i }, name)));
  at("category").hidden = !data.categories.length;
  at("pair").onchange = () => {
    state.pair = Number(at("pair").value);
    refresh();
    state.chosen === null ? overview() : record(state.chosen);
  };
  at("search").oninput = at("category").onchange = refresh;
  at("home").onclick = () => choose(null);
  at("list").onscroll = rows;
  window.onresize = () => { rows(); plot(); };
  at("canvas").onclick = (event) => {
    const box = at("canvas").getBoundingClientRect(), place = places();
    const far = (i) => Math.hypot(...place(i).map((x, n) => x - (n ? event.clientY - box.top : event.clientX - box.left)));
    let best = null, least = NEAR;
    for (const i of state.shown) {
      const away = far(i);
      if (away < least) [best, least] = [i, away];
    }
    if (best !== null) choose(best);
  };
  useKeys(state, choose);
  refresh();
  overview();
  document.body.dataset.ready = "yes";
})();

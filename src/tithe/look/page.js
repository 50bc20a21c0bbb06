(async () => {
  const data = await unpacked();
  const BARS = 60, WIDTH = 600, TALL = 70;
  const count = data.row.length;
  // What is shown: the column that sorts, its direction, the chosen record, and the range of scores.
  const state = { column: 0, down: true, chosen: null, low: -Infinity, high: Infinity, shown: [] };

  const kept = (i) => data.why[i] === 0;
  let lower = null; // made when something is searched: it takes as long as all the rest
  const searched = (i) => {
    lower ??= data.prompt.map((parts, n) => texts([...parts, ...data.response[n]]).toLowerCase());
    return lower[i];
  };
  const place = new Map(data.id.map((id, i) => [id, i]));

  function matches(i, ranged) {
    const reason = at("reason").value, text = at("search").value.toLowerCase();
    if (reason === "kept" ? !kept(i) : reason !== "" && data.why[i] !== Number(reason)) return false;
    if (text && !searched(i).includes(text)) return false;
    if (!ranged || state.low === -Infinity) return true;
    const value = data.scores[state.column]?.[i];
    return value !== null && value >= state.low && value <= state.high;
  }

  function plot() {
    const values = data.scores[state.column] || [];
    const there = values.filter((x) => x !== null);
    const svg = at("svg");
    svg.replaceChildren();
    if (!there.length) return;
    let least = Infinity, most = -Infinity;
    for (const x of there) { if (x < least) least = x; if (x > most) most = x; }
    const wide = (most - least || 1) / BARS;
    const all = Array(BARS).fill(0), green = Array(BARS).fill(0);
    values.forEach((x, i) => {
      if (x === null || !matches(i, false)) return;
      const bar = Math.min(BARS - 1, Math.floor((x - least) / wide));
      all[bar] += 1;
      if (data.selects && kept(i)) green[bar] += 1;
    });
    const top = Math.max(1, ...all);
    for (let bar = 0; bar < BARS; bar += 1) {
      const from = least + bar * wide;
      const out = from + wide < state.low || from > state.high ? " out" : "";
      const place = { x: (bar * WIDTH) / BARS, width: WIDTH / BARS - 1 };
      for (const [name, n] of [["all", all[bar]], ["kept", green[bar]]]) {
        const tall = (TALL * n) / top;
        svg.append(drawn("rect", { ...place, y: TALL - tall, height: tall, class: name + out }));
      }
    }
    const ends = [[0, "start", least], [WIDTH, "end", most]];
    for (const [x, anchor, value] of ends) {
      svg.append(drawn("text", { x, y: TALL + 12, "text-anchor": anchor }, String(+value.toPrecision(4))));
    }
    svg.onclick = (event) => {
      const box = svg.getBoundingClientRect();
      const x = least + ((event.clientX - box.left) / box.width) * (most - least);
      const open = state.low === -Infinity;
      state.low = open ? x - 2.5 * wide : -Infinity;
      state.high = open ? x + 2.5 * wide : Infinity;
      refresh();
    };
  }

  function order() {
    const values = state.column < data.scores.length ? data.scores[state.column] : data.tokens;
    const sign = state.down ? -1 : 1;
    state.shown = [];
    for (let i = 0; i < count; i += 1) if (matches(i, true)) state.shown.push(i);
    state.shown.sort((a, b) => {
      const x = values[a], y = values[b];
      if (x === null || y === null) return (x === null) - (y === null) || a - b; // those without a score last
      return sign * (x - y) || a - b;
    });
  }

  function head() {
    const names = [...data.scorers, "tokens"];
    at("head").replaceChildren(
      ...names.map((name, i) => {
        const button = make("button", { type: "button", title: `sort by ${name}` }, name);
        if (i === state.column) button.append(state.down ? " ▼" : " ▲");
        button.onclick = () => {
          if (i === state.column) state.down = !state.down;
          else Object.assign(state, { column: i, down: true, low: -Infinity, high: Infinity });
          refresh();
        };
        return make("div", { class: "cell" }, button);
      }),
      make("div", { class: "cell text" }, "prompt")
    );
  }

  function rows() {
    const cells = (i) => [
      ...data.scores.map((values) => make("div", { class: "cell" }, number(values[i]))),
      make("div", { class: "cell" }, number(data.tokens[i])),
      make("div", { class: "cell text" }, data.prompt[i].length ? data.prompt[i].at(-1)[1].slice(0, 200) : ""),
    ];
    showRows(state.shown, state.chosen, cells, (i) => (data.selects && kept(i) ? " kept" : ""), choose);
  }

  function refresh() {
    order();
    head();
    plot();
    at("list").scrollTop = 0;
    rows();
    at("number").textContent = `${whole.format(state.shown.length)} of ${whole.format(count)} shown`;
  }

  function choose(i) {
    state.chosen = i;
    bringIntoView(state.shown.indexOf(i));
    rows();
    i === null ? overview() : record(i);
  }

  function overview() {
    const parts = [make("h2", {}, "This run"), table(data.facts)];
    if (data.note) parts.push(make("p", {}, data.note));
    if (data.selects) {
      const whys = data.reasons.map((why, i) => [i ? `dropped: ${why}` : "kept", whole.format(data.counts[i])]);
      whys.push(["all", whole.format(data.counts.reduce((a, b) => a + b, 0))]);
      parts.push(make("h3", {}, "Where every example went"), table(whys));
    }
    if (data.scorers.length > 1) {
      const cells = data.agreement.map((row, i) => [
        make("th", { scope: "row" }, data.scorers[i]),
        ...row.map(([overlap, rank, both]) =>
          make(
            "td",
            { style: `background:rgba(var(--shared),${overlap * 0.5})`, title: `${whole.format(both)} with both` },
            `${Math.round(100 * overlap)} % · ${rank === null ? "–" : rank.toFixed(2)}`
          )
        ),
      ]);
      parts.push(
        make("h3", {}, "Do the scorers agree?"),
        make("p", { class: "faint" }, `Share of the top ${whole.format(data.top)} in common · rank correlation`),
        table(cells, ["", ...data.scorers])
      );
    }
    at("right").replaceChildren(...parts);
  }

  const shade = (x, full) =>
    x === null ? "" : `background:rgba(var(--${x > 0 ? "hard" : "easy"}),${Math.min(0.75, (0.75 * Math.abs(x)) / full)})`;

  function tokenView(found) {
    const mode = at("colour").value, box = make("div", { class: "tokens" });
    found.text.forEach((text, n) => {
      const given = found.given[n] ?? null, alone = found.alone[n] ?? null;
      const both = given !== null && alone !== null ? given - alone : null;
      const value = { difference: both, given, alone }[mode];
      const title = `loss given the prompt ${number(given)}, alone ${number(alone)}`;
      box.append(make("span", { title, style: shade(value, mode === "difference" ? 4 : 8) }, text));
    });
    return box;
  }

  function record(i) {
    const why = kept(i) ? "kept" : `dropped: ${data.full[i] ?? data.reasons[data.why[i]]}`;
    const parts = [
      make("h2", {}, data.selects ? why : "Record", " "),
      make("p", { class: "faint" }, `record ${data.row[i]}, turn ${data.turn[i]}, id ${data.id[i]}`),
      table([...data.scorers.map((name, n) => [name, number(data.scores[n][i])]),
        ...data.more.filter(([, values]) => values[i] !== null).map(([name, values]) => [name, number(values[i])]),
        ...Object.entries(data.columns[i])]),
    ];
    for (const [role, text] of data.prompt[i]) parts.push(make("h3", {}, role), make("pre", {}, text));
    const found = data.losses[data.id[i]];
    if (found) {
      parts.push(make("h3", {}, "response"));
      const legend = {
        difference: "orange: the prompt makes this token harder; blue: easier",
        given: "the darker, the less expected after the prompt", alone: "the darker, the less expected without it",
      }[at("colour").value];
      parts.push(make("p", { class: "faint" }, legend), tokenView(found));
    } else for (const [name, text] of data.response[i]) parts.push(make("h3", {}, name), make("pre", {}, text));
    for (const id of data.shots[data.id[i]] || []) {
      const other = place.get(id);
      parts.push(make("h3", {}, "worked example before it"));
      if (other === undefined) parts.push(make("p", {}, id));
      else {
        const button = make("button", { type: "button" }, "look at it");
        button.onclick = () => choose(other);
        parts.push(make("pre", {}, `${texts(data.prompt[other])}\n\n${texts(data.response[other])}`), button);
      }
    }
    at("right").replaceChildren(...parts);
    at("right").scrollTop = 0;
  }

  at("title").textContent = data.title;
  data.reasons.forEach((why, i) => {
    if (i) at("reason").append(make("option", { value: i }, `dropped: ${why} (${whole.format(data.counts[i])})`));
    else at("reason").append(make("option", { value: "kept" }, `kept (${whole.format(data.counts[0])})`));
  });
  at("reason").hidden = !data.selects;
  at("colours").hidden = !Object.keys(data.losses).length;
  at("search").oninput = at("reason").onchange = refresh;
  at("colour").onchange = () => state.chosen !== null && record(state.chosen);
  at("home").onclick = () => choose(null);
  at("list").onscroll = rows;
  window.onresize = rows;
  useKeys(state, choose);
  refresh();
  overview();
  document.body.dataset.ready = "yes";
})();

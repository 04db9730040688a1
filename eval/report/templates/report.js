"use strict";
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };

  // Tables: a click, or Enter, on a header sorts by it.
  const sortValue = (row, column) => {
    const cell = row.cells[column];
    const value = cell.dataset.value ?? cell.textContent;
    return value === "" ? null : Number.isNaN(Number(value)) ? value : Number(value);
  };
  const compare = (a, b) => {
    if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1;
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = element("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = header.getAttribute("aria-sort") !== "descending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        header.setAttribute("aria-sort", down ? "descending" : "ascending");
        const keyed = [...table.tBodies[0].rows].map((row) => [sortValue(row, column), row]);
        const sign = down ? -1 : 1;
        keyed.sort(([a], [b]) => (a === null || b === null ? compare(a, b) : sign * compare(a, b)));
        table.tBodies[0].append(...keyed.map(([, row]) => row));
      });
    });
  }
  for (const input of document.querySelectorAll("input.filter")) {
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      for (const row of document.getElementById(input.dataset.table).tBodies[0].rows) {
        const named = [...row.cells].slice(0, Number(input.dataset.columns ?? 1));
        row.hidden = !named.some((cell) => cell.textContent.toLowerCase().includes(wanted));
      }
    });
  }

  // Figures: drawn when they come into view, and again when the colours change.
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const drawn = new Set();
  const loadPlotly = () => {
    if (window.Plotly) return;
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
  };
  const draw = (place) => {
    loadPlotly();
    const { data, layout } = runs[place.dataset.run].figures[place.dataset.figure];
    const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line") };
    drawn.add(place);
    Plotly.react(
      place,
      data,
      {
        ...layout,
        xaxis: { ...layout.xaxis, ...axis },
        yaxis: { ...layout.yaxis, ...axis },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: colour("--text") },
        hoverlabel: { bgcolor: colour("--soft"), font: { color: colour("--text") } },
      },
      { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] },
    );
  };
  const places = document.querySelectorAll(".plot");
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        seen.unobserve(entry.target);
        draw(entry.target);
      }
    }
  }, { rootMargin: "300px" });
  // Tables and images first: the script that draws figures is large.
  requestAnimationFrame(() => setTimeout(() => places.forEach((place) => seen.observe(place))));
  // Paper is light: what is drawn for it takes its colours while the page is.
  const root = document.documentElement;
  let onScreen;
  window.addEventListener("beforeprint", () => {
    onScreen = root.dataset.theme;
    root.dataset.theme = "light";
    places.forEach(draw);
  });
  window.addEventListener("afterprint", () => {
    if (onScreen === undefined) delete root.dataset.theme;
    else root.dataset.theme = onScreen;
    drawn.forEach(draw);
  });
  matchMedia("print").addEventListener("change", () => drawn.forEach(draw));

  const theme = document.getElementById("theme");
  const isDark = () =>
    (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const named = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-pressed", String(isDark()));
  };
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    named();
    drawn.forEach(draw);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    named();
    drawn.forEach(draw);
  });
  named();

  // A table that is cut off says so.
  const widths = new ResizeObserver((entries) => {
    for (const { target } of entries) target.toggleAttribute("data-wide", target.scrollWidth > target.clientWidth + 1);
  });
  document.querySelectorAll(".scroll").forEach((table) => widths.observe(table));

  // Images: rows of questions, columns of models. A sprite becomes a rule of the style sheet when it is first needed.
  const sheet = document.head.appendChild(document.createElement("style")).sheet;
  const spriteClass = (id) => {
    const source = document.getElementById(id);
    if (!source.dataset.used) {
      source.dataset.used = "yes";
      sheet.insertRule(`.${id} { background-image: url(data:image/webp;base64,${source.textContent}); }`);
    }
    return id;
  };
  const PAGE = 20;
  const TARGET_AXES = ["forget", "indirect", "adversarial"];
  const ANY = "all";
  document.querySelectorAll("form.strips").forEach((form) => {
    const number = form.dataset.run;
    const { strips, sprites } = runs[number];
    const table = document.getElementById(`strip-${number}`);
    const more = document.querySelector(`.more[data-run="${number}"]`);
    const text = (i) => strips.texts[i];
    const uncounted = new Set(strips.uncounted);
    const isWrong = (cell, i) =>
      Boolean(cell) && cell[0] >= 0 && (cell[0] === 1) === TARGET_AXES.includes(text(strips.questions[i][1]));
    const fails = (cell, i) => !uncounted.has(i) && isWrong(cell, i);
    const perSprite = sprites.columns * sprites.rows;
    let limit = PAGE;

    const options = (select, values, first) => {
      select.replaceChildren(...[...first, ...values].map((value) => element("option", value)));
    };
    options(form.concept, [...new Set(strips.questions.map((q) => text(q[0])))].sort(), [ANY]);
    options(form.method, strips.columns.slice(1), [ANY]);
    options(form.axis, [...new Set(strips.questions.map((q) => text(q[1])))], [ANY]);

    const thumbnail = (cell, kind, alt) => {
      const file = cell[4] === undefined ? null : `${runs[number].images}/${cell[4]}`;
      const image = element(file ? "a" : "span", undefined, `thumb ${kind}`);
      if (file) image.href = file;
      const side = Math.max(sprites.side, 64);
      image.style.width = image.style.height = `${side + 6}px`;
      if (!file) image.setAttribute("role", "img");
      image.setAttribute("aria-label", alt);
      if (cell[2] !== null) {
        const place = cell[2] % perSprite;
        const column = place % sprites.columns;
        const row = Math.floor(place / sprites.columns);
        image.classList.add(spriteClass(`sprite-${number}-${Math.floor(cell[2] / perSprite)}`));
        image.style.backgroundSize = `${sprites.columns * side}px auto`;
        image.style.backgroundPosition = `${-column * side}px ${-row * side}px`;
        image.style.backgroundClip = image.style.backgroundOrigin = "padding-box";
      }
      return image;
    };
    const answerCell = (cell, i, column) => {
      const question = strips.questions[i];
      const made = element("td", undefined, "cell");
      if (!cell) return made;
      const wrong = column !== 0 && isWrong(cell, i);
      const kind = !wrong ? "" : uncounted.has(i) ? "uncounted" : "failure";
      const answer = cell[3] !== null ? text(cell[3]) : ["unreadable", "absent", "present"][cell[0] + 1];
      const said = cell[1] === null ? answer : `${answer} ${cell[1].toFixed(2)}`;
      if (kind) made.classList.add(kind);
      const alt = `${strips.columns[column]}: ${text(question[3])}, seed ${question[4]}: ${text(question[2])} ${said}`;
      made.append(thumbnail(cell, kind, alt), element("span", wrong ? `✗ ${said}` : said));
      return made;
    };
    const questionCell = (question) => {
      const made = element("th", undefined, "question");
      made.scope = "row";
      made.append(
        element("div", text(question[3]), "prompt"),
        element("div", `${text(question[1])}: is ${text(question[2])} there? seed ${question[4]}`, "muted"),
      );
      if (question[0] !== question[2]) made.append(element("div", `forgotten: ${text(question[0])}`, "muted"));
      return made;
    };
    const show = () => {
      const chosen = strips.columns.indexOf(form.method.value);
      const columns = strips.columns.map((_, i) => i).filter((i) => i === 0 || chosen < 1 || i === chosen);
      const edited = columns.filter((i) => i !== 0);
      const failing = (i) => edited.filter((c) => fails(strips.cells[c][i], i)).length;
      let rows = strips.questions
        .map((question, i) => i)
        .filter((i) => form.concept.value === ANY || text(strips.questions[i][0]) === form.concept.value)
        .filter((i) => form.axis.value === ANY || text(strips.questions[i][1]) === form.axis.value)
        .filter((i) => edited.length === 0 || edited.some((c) => strips.cells[c][i]))
        .map((i) => [failing(i), i])
        .filter(([count]) => !form.failures.checked || count > 0);
      rows.sort(([a, i], [b, j]) => b - a || i - j);
      const used = columns.filter((c) => c === 0 || rows.some(([, i]) => strips.cells[c][i]));
      const head = element("thead");
      const titles = element("tr");
      titles.append(element("th", "question"), ...used.map((c) => element("th", strips.columns[c])));
      head.append(titles);
      const body = element("tbody");
      for (const [, i] of rows.slice(0, limit)) {
        const line = element("tr");
        line.append(questionCell(strips.questions[i]), ...used.map((c) => answerCell(strips.cells[c][i], i, c)));
        body.append(line);
      }
      const caption = element("caption", `${Math.min(limit, rows.length)} of ${rows.length} rows`);
      table.replaceChildren(caption, head, body);
      more.hidden = rows.length <= limit;
    };
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => {
      limit = PAGE;
      show();
    });
    more.addEventListener("click", () => {
      limit += 5 * PAGE;
      show();
    });
    show();
  });
  for (const link of document.querySelectorAll("a.to-method")) {
    link.addEventListener("click", () => {
      document.querySelector(link.hash).open = true;
    });
  }
  for (const link of document.querySelectorAll("a.to-images")) {
    link.addEventListener("click", () => {
      const form = document.querySelector(`form.strips[data-run="${link.dataset.run}"]`);
      form.concept.value = link.dataset.concept;
      form.method.value = link.dataset.method;
      form.dispatchEvent(new Event("input"));
    });
  }
})();

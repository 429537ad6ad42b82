(() => {
  "use strict";
  const $ = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const read = (id) => JSON.parse($(id).textContent);
  const state = read("state");
  let images = null, maps = null; // read when the first picture is opened
  const LABEL = 0, CLUSTER = 1, IMAGE = 2, BOX = 3, SCORE = 4, HALF = 5, SPECIFIC = 6, PLACE = 7, ALIKE = 8;

  const milli = (value) => {
    const size = Math.abs(value * 1000);
    const text = size.toFixed(size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2);
    return Number(text) === 0 ? "0" : (value > 0 ? "+" : "−") + text;
  };
  const make = (name, text, className) => {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  };
  for (const node of all("[data-label-name]")) node.textContent = state.labelName;

  // ---- theme: automatic, light, dark
  const themes = ["auto", "light", "dark"];
  const showTheme = () => {
    const name = document.documentElement.dataset.theme || "auto";
    const shown = name[0].toUpperCase() + name.slice(1);
    $("theme").setAttribute("aria-label", "Colour theme: " + shown);
    $("theme").querySelector("[data-theme-name]").textContent = shown;
  };
  $("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme || "auto";
    const next = themes[(themes.indexOf(now) + 1) % themes.length];
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try { next === "auto" ? localStorage.removeItem("typicality-theme") : localStorage.setItem("typicality-theme", next); } catch { /* storage is off */ }
    showTheme();
  });
  showTheme();

  // ---- the address: #label=..&cluster=..&element=.. and #show=..&with=..
  const address = () => {
    const found = {};
    for (const part of location.hash.slice(1).split("&")) {
      const [name, value] = part.split("=");
      if (value === undefined) continue;
      try { found[name] = decodeURIComponent(value); } catch { found[name] = value; }
    }
    return found;
  };
  const toAddress = (parts) => "#" + Object.entries(parts).filter((p) => p[1] !== undefined && p[1] !== "")
    .map(([name, value]) => name + "=" + encodeURIComponent(value)).join("&");

  // ---- filters
  const sections = all(".label").map((node) => ({
    node,
    label: Number(node.dataset.label),
    box: node.querySelector(".clusters"),
    clusters: all(".cluster", node).map((cluster) => ({
      node: cluster,
      sound: cluster.dataset.sound === "1",
      sure: Number(cluster.dataset.sound), rank: Number(cluster.dataset.rank), size: Number(cluster.dataset.size), images: Number(cluster.dataset.images),
      tiles: all(".tile", cluster).map((tile) => ({
        node: tile, number: Number(tile.dataset.n), hidden: false,
      })),
      hidden: false,
    })),
  }));
  const lower = state.images.map((image) => [image[0], image[3], ...image[5].map((pair) => pair.join(":"))].join(" ").toLowerCase());
  const put = (thing, hidden) => { if (thing.hidden !== hidden) { thing.hidden = hidden; thing.node.hidden = hidden; } };
  let visible = [];

  const filter = () => {
    const words = [...$("search").value.toLowerCase().matchAll(/"([^"]+)"|\S+/g)].map((m) => m[1] ?? m[0]);
    const show = $("show").value, beside = show === "" ? "" : $("beside").value;
    const only = $("sound").checked;
    const found = lower.map((text) => words.every((word) => text.includes(word)));
    let clusters = 0;
    visible = [];
    for (const section of sections) {
      const off = show !== "" && String(section.label) !== show && String(section.label) !== beside;
      let left = 0;
      if (!off) for (const cluster of section.clusters) {
        let matches = 0;
        if (!only || cluster.sound) for (const tile of cluster.tiles) {
          const match = found[state.items[tile.number][IMAGE]];
          put(tile, !match);
          if (match) { matches += 1; visible.push(tile.number); }
        }
        put(cluster, matches === 0);
        // a row's one stop of the tab key must be a tile that is shown
        const stop = cluster.tiles.find((tile) => tile.node.tabIndex === 0);
        if (matches && stop.hidden) { stop.node.tabIndex = -1; cluster.tiles.find((tile) => !tile.hidden).node.tabIndex = 0; }
        if (matches) left += 1;
      }
      clusters += left;
      section.node.hidden = off || (left === 0 && (words.length > 0 || only));
    }
    document.body.classList.toggle("comparing", beside !== "" && beside !== show);
    $("beside").disabled = show === "";
    $("found").textContent = visible.length.toLocaleString("en") + " shown in " + clusters.toLocaleString("en") + (clusters === 1 ? " row" : " rows");
    $("nothing").hidden = visible.length > 0 || sections.every((s) => s.clusters.length === 0);
  };
  const sort = () => {
    const by = $("sort").value === "sound" ? "sure" : $("sort").value;
    for (const section of sections) {
      section.clusters.sort((a, b) => (by === "rank" ? 0 : b[by] - a[by]) || a.rank - b.rank);
      section.box.append(...section.clusters.map((cluster) => cluster.node));
    }
    filter();
  };
  let waiting = 0; // once a frame: keys that come faster than the page can show are taken together
  $("search").addEventListener("input", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(filter); });
  $("sound").addEventListener("change", filter);
  $("sort").addEventListener("change", sort);
  const remember = () => {
    const show = $("show").value, beside = $("beside").value;
    const next = show === "" ? location.pathname + location.search
      : toAddress({ show: state.labels[show], with: beside === "" ? undefined : state.labels[beside] });
    history.replaceState(null, "", next);
  };
  for (const name of ["show", "beside"]) $(name).addEventListener("change", () => { filter(); remember(); });
  $("context").addEventListener("change", () => document.body.classList.toggle("tight", !$("context").checked));
  $("size").addEventListener("input", () => document.documentElement.style.setProperty("--tile", $("size").value + "px"));
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("more").addEventListener("click", () => $("more").setAttribute("aria-expanded", String($("more").getAttribute("aria-expanded") !== "true")));
  $("reset").addEventListener("click", () => {
    $("search").value = ""; $("show").value = ""; $("beside").value = ""; $("sound").checked = false;
    filter(); remember(); $("search").focus();
  });
  $("copy").addEventListener("click", async () => {
    const names = [...new Set(visible.map((number) => state.images[state.items[number][IMAGE]][0]))];
    let done = false;
    try { await navigator.clipboard.writeText(names.join("\n")); done = true; } catch {
      const area = make("textarea", names.join("\n"), "sr");
      document.body.append(area); area.select(); done = document.execCommand("copy"); area.remove(); $("copy").focus();
    }
    $("found").textContent = done ? names.length.toLocaleString("en") + " file names copied" : "Copying is not allowed here";
  });

  // ---- long reports: tiles get their pictures, which follow this script, when they come near the screen
  let tiles = null;
  const load = (root) => {
    const late = all("img[data-late]", root);
    if (!late.length || !$("tiles")) return;
    if (!tiles) { const given = read("tiles"); tiles = { thumbs: given.thumbs, crops: new Map(given.numbers.map((number, n) => [number, given.crops[n]])) }; }
    for (const image of late) {
      const number = Number(image.closest("[data-n]").dataset.n);
      image.src = tiles.crops.get(number) ?? tiles.thumbs[state.items[number][IMAGE]];
      image.removeAttribute("data-late");
    }
  };
  const watchAll = () => {
    const watch = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) { watch.unobserve(entry.target); load(entry.target); }
    }, { rootMargin: "600px" });
    for (const node of all(".cluster, .overview li, .wholes")) watch.observe(node);
    addEventListener("beforeprint", () => load(document));
  };
  const onceParsed = (action) => document.readyState === "loading" ? addEventListener("DOMContentLoaded", action, { once: true }) : action();
  if (document.querySelector("img[data-late]")) onceParsed(watchAll);

  // ---- moving among tiles: one stop of the tab key a row, arrows inside
  const focusTile = (tile) => {
    for (const other of all('.tile[tabindex="0"]', tile.parentNode)) other.tabIndex = -1;
    tile.tabIndex = 0; tile.focus();
  };
  $("labels").addEventListener("keydown", (event) => {
    const tile = event.target.closest(".row .tile");
    if (!tile || !/^(Arrow|Home|End)/.test(event.key)) return;
    const row = all(".tile:not([hidden])", tile.parentNode), at = row.indexOf(tile);
    let next = null;
    if (event.key === "ArrowRight") next = row[at + 1];
    if (event.key === "ArrowLeft") next = row[at - 1];
    if (event.key === "Home") next = row[0];
    if (event.key === "End") next = row[row.length - 1];
    if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const rows = all(".cluster:not([hidden])").filter((node) => node.offsetParent);
      const other = rows[rows.indexOf(tile.closest(".cluster")) + (event.key === "ArrowDown" ? 1 : -1)];
      const tiles = other ? all(".tile:not([hidden])", other) : [];
      next = tiles[Math.min(at, tiles.length - 1)];
    }
    event.preventDefault();
    if (next) focusTile(next);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && !box.open && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
      event.preventDefault();
      $("more").setAttribute("aria-expanded", "true");
      $("search").focus();
    }
  });

  // ---- the lightbox
  const box = $("lightbox");
  let current = -1, opener = null, pushed = false, values = null;
  const where = (number) => {
    const item = state.items[number];
    const parts = { label: state.labels[item[LABEL]] };
    if (item[CLUSTER] >= 0) { parts.cluster = state.clusters[item[CLUSTER]][0]; parts.element = item[PLACE]; }
    else parts.image = item[PLACE] + (state.items.slice(0, number).filter((o) => o[CLUSTER] < 0 && o[LABEL] === item[LABEL] && o[PLACE] === item[PLACE]).length + 1);
    return toAddress(parts);
  };
  const find = (parts) => state.items.findIndex((item) => item[CLUSTER] >= 0 && state.labels[item[LABEL]] === parts.label
    && String(state.clusters[item[CLUSTER]][0]) === parts.cluster && String(item[PLACE]) === parts.element);
  const findImage = (parts) => {
    const [, side, place] = /^(most|least)(\d+)$/.exec(parts.image) || [];
    const found = state.items.map((item, number) => number).filter((number) => {
      const item = state.items[number];
      return item[CLUSTER] < 0 && state.labels[item[LABEL]] === parts.label && item[PLACE] === side;
    });
    return found[Number(place) - 1] ?? -1;
  };
  const tileOf = (number) => document.querySelector('#labels [data-n="' + number + '"]');

  const open = (number, from) => {
    opener = from || document.activeElement;
    if (!box.open) {
      pushed = Boolean(from);
      if (pushed) history.pushState({ box: true }, "", where(number));
      box.showModal();
    }
    show(number);
    $("close").focus({ preventScroll: true });
  };
  const show = (number) => {
    if (!images) { images = read("images"); maps = read("maps"); }
    current = number;
    const item = state.items[number], image = state.images[item[IMAGE]], cluster = state.clusters[item[CLUSTER]];
    $("box-where").textContent = state.labels[item[LABEL]] + (cluster
      ? (cluster[0] < 0 ? " · best places" : " · visual element " + cluster[1]) : " · " + item[PLACE] + " typical images");
    $("box-title").firstChild.textContent = image[0];
    const half = item[HALF] ?? 0, low = item[SCORE] - half, high = item[SCORE] + half;
    $("box-score").textContent = milli(item[SCORE]);
    $("box-score").parentNode.classList.toggle("below", item[SCORE] < 0);
    $("box-range").textContent = item[HALF] === null ? "too few draws for an interval, so no evidence"
      : "90% interval " + milli(low) + " to " + milli(high) + (low > 0 || high < 0 ? "" : ": includes zero, so no evidence");
    interval(low, high, item[SCORE]);
    facts(item, image, cluster);
    others(item, image);
    near(number, item);
    picture(item, image);
  };
  const interval = (low, high, score) => {
    const span = Math.max(Math.abs(low), Math.abs(high), 1e-9) * 1.15, from = Math.min(0, low) < 0 ? -span : -0.08 * span;
    const at = (value) => (100 * (value - from) / (span - from)) + "%";
    const [bar, dot, zero] = $("box-interval").children;
    bar.style.left = at(low); bar.style.width = (100 * (high - low) / (span - from)) + "%";
    dot.style.left = at(score); zero.style.left = at(0);
  };
  const facts = (item, image, cluster) => {
    const rows = [];
    if (item[SPECIFIC] !== null) rows.push(["Specificity", milli(item[SPECIFIC]) + " × 10⁻³ above the other labels"]);
    if (cluster && cluster[0] >= 0) {
      rows.push(["Visual element", "rank " + cluster[1] + ", median " + milli(cluster[2]) + ", " + cluster[3] + " in " + cluster[4] + (cluster[4] === 1 ? " image" : " images")]);
      rows.push(["Cluster", "number " + cluster[0] + ", member " + item[PLACE]]);
      for (const doubt of cluster[5]) rows.push(["Doubt", doubt]);
      for (const pair of cluster[6]) rows.push(pair);
    }
    if (item[BOX]) rows.push(["Place", (item[BOX][2] - item[BOX][0]) + " × " + (item[BOX][3] - item[BOX][1]) + " px at x " + item[BOX][0] + ", y " + item[BOX][1]]);
    if (image[1]) rows.push(["Image", image[1] + " × " + image[2] + " px"]);
    if (image[3]) rows.push(["Group", image[3]]);
    if (image[6] !== null) rows.push(["Scored by", image[6] ? "a model that was also trained on this image" : "a model that never saw this image"]);
    for (const pair of image[5]) rows.push(pair);
    $("box-facts").replaceChildren(...rows.flatMap(([name, value]) => {
      const detail = make("dd"); detail.append(make("bdi", value));
      return [make("dt", name), detail];
    }));
  };
  const others = (item, image) => {
    const scores = image[4], most = Math.max(...scores.map((s) => Math.abs(s[1])), 1e-9);
    $("box-others").hidden = scores.length < 2;
    $("box-others").querySelector("ul").replaceChildren(...scores.map(([label, value]) => {
      const row = make("li", undefined, label === item[LABEL] ? "own" : "");
      const name = make("span"); name.append(make("bdi", state.labels[label]));
      const track = make("i"), bar = make("b", undefined, value < 0 ? "below" : "");
      const width = 50 * Math.abs(value) / most;
      bar.style.left = (value < 0 ? 50 - width : 50) + "%"; bar.style.width = width + "%";
      track.append(bar); row.append(name, track, make("span", milli(value), "num"));
      return row;
    }));
  };
  const small = (n, named) => {
    const copy = tileOf(n).cloneNode(true);
    copy.hidden = false; copy.tabIndex = 0; load(copy);
    if (!named) return copy;
    const cell = make("div"), label = make("span");
    label.append(make("bdi", state.labels[state.items[n][LABEL]]));
    cell.append(copy, label);
    return cell;
  };
  const near = (number, item) => {
    $("box-alike").hidden = item[ALIKE].length === 0;
    $("box-alike").querySelector(".near").replaceChildren(...item[ALIKE].map((n) => small(n, true)));
    const mates = item[CLUSTER] < 0 ? [] : state.items.map((other, n) => n)
      .filter((n) => n !== number && state.items[n][CLUSTER] === item[CLUSTER])
      .sort((a, b) => Math.abs(state.items[a][PLACE] - item[PLACE]) - Math.abs(state.items[b][PLACE] - item[PLACE])).slice(0, 10);
    $("box-near").hidden = mates.length === 0;
    $("box-near").querySelector(".near").replaceChildren(...mates.map((n) => small(n, false)));
  };

  // ---- the source image, the box, and the map over it
  const picture = (item, image) => {
    const uri = images[item[IMAGE]], mark = $("box-mark");
    $("box-image").hidden = !uri; $("box-none").hidden = Boolean(uri);
    if (uri) $("box-image").src = uri; else $("box-image").removeAttribute("src");
    $("box-image").alt = uri ? "Source image " + image[0] : "";
    mark.hidden = !item[BOX];
    if (item[BOX]) {
      const [x0, y0, x1, y1] = item[BOX];
      Object.assign(mark.style, { left: 100 * x0 / image[1] + "%", top: 100 * y0 / image[2] + "%", width: 100 * (x1 - x0) / image[1] + "%", height: 100 * (y1 - y0) / image[2] + "%" });
    }
    fit(); paint(item, image);
  };
  const fit = () => {
    const image = state.images[state.items[current][IMAGE]], frame = $("frame"), stage = frame.parentNode;
    const style = getComputedStyle(stage);
    const across = stage.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const narrow = matchMedia("(max-width: 760px)").matches;
    const down = narrow ? innerHeight * .5 : stage.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom) - stage.querySelector(".mapbar").offsetHeight - 18;
    const width = image[1] || 1, height = image[2] || 1;
    let factor = Math.max(Math.min(across / width, down / height), 0.01);
    if (factor > 3) factor = Math.floor(factor); // whole pixels stay square
    frame.style.width = width * factor + "px"; frame.style.height = height * factor + "px";
    $("box-image").classList.toggle("crisp", Math.max(width, height) <= 128);
  };
  const paint = (item, image) => {
    const map = maps[item[IMAGE] + ":" + item[LABEL]], canvas = $("box-map"), scale = state.scale;
    values = null;
    canvas.hidden = !map;
    $("scale-low").textContent = milli(-scale); $("scale-high").textContent = milli(scale);
    $("readout").textContent = "";
    if (!map) return;
    const [h, w, step, text, x0, y0, x1, y1] = map;
    const bytes = Int8Array.from(atob(text), (c) => c.charCodeAt(0));
    values = { h, w, step, bytes, x0, y0, x1, y1 };
    const small = new OffscreenCanvas(w, h), pen = small.getContext("2d"), pixels = pen.createImageData(w, h);
    bytes.forEach((byte, n) => {
      const share = Math.max(-1, Math.min(1, byte * step / scale));
      pixels.data.set(share < 0 ? [24, 102, 168, -share * 235] : [214, 74, 24, share * 235], n * 4);
    });
    pen.putImageData(pixels, 0, 0);
    const zoom = Math.min(8, 768 / Math.max(image[1], image[2], 1));
    canvas.width = Math.max(1, Math.round(image[1] * zoom)); canvas.height = Math.max(1, Math.round(image[2] * zoom));
    const brush = canvas.getContext("2d");
    brush.imageSmoothingEnabled = true; brush.imageSmoothingQuality = "high";
    brush.drawImage(small, x0 * zoom, y0 * zoom, (x1 - x0) * zoom, (y1 - y0) * zoom);
    canvas.style.opacity = $("opacity").value / 100;
  };
  $("opacity").addEventListener("input", () => {
    $("box-map").style.opacity = $("opacity").value / 100;
    $("opacity").setAttribute("aria-valuetext", $("opacity").value + " percent");
  });
  $("frame").addEventListener("pointermove", (event) => {
    if (!values) return;
    const area = $("frame").getBoundingClientRect(), image = state.images[state.items[current][IMAGE]];
    const x = (event.clientX - area.left) / area.width * image[1], y = (event.clientY - area.top) / area.height * image[2];
    const column = Math.floor((x - values.x0) / (values.x1 - values.x0) * values.w), row = Math.floor((y - values.y0) / (values.y1 - values.y0) * values.h);
    const inside = column >= 0 && row >= 0 && column < values.w && row < values.h;
    $("readout").textContent = inside ? "here " + milli(values.bytes[row * values.w + column] * values.step) : "";
  });
  $("frame").addEventListener("pointerleave", () => { $("readout").textContent = ""; });
  addEventListener("resize", () => { if (box.open) fit(); });

  // ---- steps, closing and the back button
  const step = (by) => {
    const item = state.items[current];
    const list = item[CLUSTER] < 0
      ? state.items.map((o, n) => n).filter((n) => state.items[n][CLUSTER] < 0 && state.items[n][LABEL] === item[LABEL])
      : visible.includes(current) ? visible : all("#labels .tile").map((node) => Number(node.dataset.n));
    const next = list[(list.indexOf(current) + by + list.length) % list.length];
    history.replaceState(history.state, "", where(next));
    show(next);
  };
  const close = () => {
    if (pushed) history.back();
    else { history.replaceState(null, "", location.pathname + location.search); box.close(); }
  };
  $("before").addEventListener("click", () => step(-1));
  $("after").addEventListener("click", () => step(1));
  $("close").addEventListener("click", close);
  box.addEventListener("cancel", (event) => { event.preventDefault(); close(); });
  box.addEventListener("click", (event) => { if (event.target === box) close(); });
  box.addEventListener("close", () => {
    pushed = false;
    const tile = tileOf(current), back = opener && opener.isConnected && opener !== document.body && !box.contains(opener) ? opener : tile;
    if (back && back.offsetParent) {
      if (back === tile && tile.closest(".row")) focusTile(tile); else back.focus();
    }
    opener = null;
  });
  box.addEventListener("keydown", (event) => {
    if (event.target.type === "range" && event.target.id === "opacity") return;
    if (event.key === "ArrowRight") { event.preventDefault(); step(1); }
    if (event.key === "ArrowLeft") { event.preventDefault(); step(-1); }
    if (event.key === "Tab") {
      const stops = all("button, input, [tabindex='0']", box).filter((node) => node.offsetParent);
      const edge = event.shiftKey ? stops[0] : stops[stops.length - 1];
      if (document.activeElement === edge) { event.preventDefault(); stops[event.shiftKey ? stops.length - 1 : 0].focus(); }
    }
  });
  document.addEventListener("click", (event) => {
    const tile = event.target.closest("[data-n]");
    if (!tile) return;
    const number = Number(tile.dataset.n);
    if (box.contains(tile)) { history.replaceState(history.state, "", where(number)); show(number); $("close").focus({ preventScroll: true }); }
    else onceParsed(() => open(number, tile));
  });

  // rows that were never drawn have guessed heights, so a long jump is corrected once its end has been drawn
  const reach = (node, block, times = 4) => {
    node.scrollIntoView({ block });
    if (times > 0) requestAnimationFrame(() => reach(node, block, times - 1));
  };
  const follow = () => {
    const parts = address();
    if (parts.element !== undefined || parts.image !== undefined) {
      const number = parts.image === undefined ? find(parts) : findImage(parts);
      if (number >= 0) { if (box.open) show(number); else open(number); return; }
    }
    if (box.open) box.close();
    const part = document.getElementById(location.hash.slice(1));
    if (part && part.matches("main section, main h2, footer h2")) { reach(part, "start"); part.focus({ preventScroll: true }); return; }
    if (parts.show !== undefined) {
      const show = state.labels.indexOf(parts.show), beside = state.labels.indexOf(parts.with);
      if (show >= 0) { $("show").value = String(show); $("beside").value = beside >= 0 ? String(beside) : ""; filter(); $("elements").scrollIntoView(); }
      return;
    }
    const section = sections.find((one) => state.labels[one.label] === parts.label);
    for (const node of all(".cluster.here")) node.classList.remove("here");
    if (!section) return;
    if (section.node.hidden) { $("reset").click(); }
    const cluster = section.clusters.find((one) => one.node.dataset.cluster === parts.cluster);
    if (cluster) { cluster.node.classList.add("here"); reach(cluster.node, "center"); }
    else { reach(section.node, "start"); section.node.querySelector("h2").focus({ preventScroll: true }); }
  };
  addEventListener("hashchange", follow);
  addEventListener("popstate", () => { if (box.open && !address().element && !address().image) box.close(); });
  addEventListener("beforeprint", () => { for (const details of all(".wholes")) details.open = true; });
  for (const link of all('a[href="#unreadable"], a[href="#duplicates"]')) link.addEventListener("click", () => { const list = document.querySelector(link.getAttribute("href")); if (list) list.open = true; });

  filter();
  onceParsed(follow); // a link may open a picture, and pictures come after this script
  performance.mark("ready");
  document.documentElement.dataset.ready = "true";
})();

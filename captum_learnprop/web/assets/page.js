// What Gradio has no widget for: examples to choose, maps side by side that are read by pointer or arrow keys, patches to
// click away. Each is an element whose attribute "data" is JSON in base64; all text is written as text, never as HTML.
(() => {
  "use strict";

  const unpack = (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes));
  };
  const raw = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const make = (name, attributes = {}, ...children) => {
    const found = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === true) found.setAttribute(key, "");
      else if (value !== false && value !== null && value !== undefined) found.setAttribute(key, value);
    }
    found.append(...children.filter((child) => child !== null));
    return found;
  };
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const short = (value) => (value === 0 ? "0" : Number(value.toPrecision(3)).toString());

  // Gradio brings an element's HTML into line with the new one: it changes the attribute and takes out what was drawn.
  // So the element looks at itself after every such change, and draws what is missing.
  class Piece extends HTMLElement {
    connectedCallback() {
      this.watcher = new MutationObserver(() => this.redraw());
      this.watcher.observe(this, { attributes: true, childList: true });
      this.redraw();
    }
    disconnectedCallback() {
      this.watcher.disconnect();
    }
    redraw() {
      const text = this.getAttribute("data");
      if (!text || (text === this.drawn && this.firstChild)) return;
      this.drawn = text;
      this.replaceChildren();
      this.draw(unpack(text));
    }
    tell(name, detail) {
      this.dispatchEvent(new CustomEvent(`learnprop-${name}`, { bubbles: true, detail }));
    }
  }

  class Note extends Piece {
    draw(data) {
      const role = data.kind === "error" ? "alert" : "status";
      const box = make("div", { class: `lp-note lp-${data.kind}`, role });
      if (data.share !== undefined) {
        box.append(make("progress", { max: 1, value: data.share, "aria-label": "how far the training is" }));
      }
      box.append(make("p", {}, data.text));
      for (const line of data.more || []) box.append(make("p", { class: "lp-more" }, line));
      this.append(box);
    }
  }

  class Examples extends Piece {
    draw(data) {
      const list = make("div", { class: "lp-examples", role: "group", "aria-label": "examples" });
      for (const item of data.items) {
        const button = make(
          "button",
          { type: "button", "aria-pressed": String(item.name === data.chosen), title: item.name },
          make("img", { src: item.picture, alt: "" }),
          make("span", {}, item.name),
        );
        button.addEventListener("click", () => {
          for (const other of list.children) other.setAttribute("aria-pressed", String(other === button));
          this.tell("example", { name: item.name });
        });
        list.append(button);
      }
      this.append(list);
    }
  }

  // Kept while maps are drawn anew: how strong they are, and where they are read.
  const view = { opacity: 75, point: null };

  class Maps extends Piece {
    draw(data) {
      this.palette = raw(data.palette);
      this.tiles = data.maps.map((one) => this.tile(data, one));
      const bar = make("div", { class: "lp-bar" }, this.slider(), this.legend());
      const plain = make(
        "figure",
        { class: "lp-tile" },
        make("div", { class: "lp-stage" }, make("img", { src: data.picture, alt: data.title || "the picture" }), frame(data)),
        make("figcaption", {}, make("strong", {}, data.title || "the picture"), make("span", {}, `${data.width} x ${data.height} pixels`)),
      );
      const grid = make("div", { class: "lp-tiles" }, plain, ...this.tiles.map((one) => one.figure));
      const head = make("h3", { class: "lp-target" }, "What speaks for ", make("em", {}, data.target));
      this.append(head, bar, grid);
      this.repaint();
      this.read(view.point);
    }

    slider() {
      const said = make("output", {}, `${view.opacity} %`);
      const input = make("input", { type: "range", min: 0, max: 100, step: 5, value: view.opacity, "aria-label": "opacity of the maps" });
      input.addEventListener("input", () => {
        view.opacity = Number(input.value);
        said.textContent = `${view.opacity} %`;
        this.repaint();
      });
      return make("label", { class: "lp-opacity" }, make("span", {}, "Opacity"), input, said);
    }

    legend() {
      const stops = [0, 32, 64, 96, 128, 160, 192, 224, 255].map((at) => `rgb(${this.palette.slice(3 * at, 3 * at + 3).join(",")})`);
      const strip = make("span", { class: "lp-strip", style: `background: linear-gradient(to right, ${stops.join(",")})` });
      return make("div", { class: "lp-legend" }, make("span", {}, "against it"), strip, make("span", {}, "for it"));
    }

    tile(data, one) {
      const bytes = raw(one.values);
      const values = new Int16Array(bytes.buffer, 0, one.rows * one.columns);
      const canvas = make("canvas", { width: one.columns, height: one.rows, "aria-hidden": "true" });
      const cross = make("span", { class: "lp-cross", hidden: true });
      const stage = make(
        "div",
        {
          class: "lp-stage lp-map",
          tabindex: 0,
          role: "application",
          "aria-label": `Map of ${data.target} by ${one.method}. Arrow keys move the point whose value is read.`,
        },
        make("img", { src: data.picture, alt: "", class: "lp-grey" }),
        canvas,
        frame(data),
        cross,
      );
      const said = make("output", { class: "lp-value", "aria-live": "polite" }, "Point at the map to read its values");
      const figure = make(
        "figure",
        { class: "lp-tile" },
        stage,
        make("figcaption", {}, make("strong", {}, one.method), make("span", {}, `${one.cost}, ${one.sign}`), said),
      );
      const at = (event) => {
        const box = stage.getBoundingClientRect();
        return [clamp((event.clientX - box.left) / box.width, 0, 0.9999), clamp((event.clientY - box.top) / box.height, 0, 0.9999)];
      };
      stage.addEventListener("pointermove", (event) => this.read(at(event)));
      stage.addEventListener("pointerdown", (event) => this.read(at(event)));
      stage.addEventListener("keydown", (event) => {
        const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
        if (!moves) return;
        event.preventDefault();
        const step = event.shiftKey ? 0.1 : 0.02;
        const [x, y] = view.point || [0.5, 0.5];
        this.read([clamp(x + step * moves[0], 0, 0.9999), clamp(y + step * moves[1], 0, 0.9999)]);
      });
      stage.addEventListener("focus", () => this.read(view.point || [0.5, 0.5]));
      return { one, values, canvas, cross, said, figure, width: data.width, height: data.height };
    }

    repaint() {
      const strength = (255 * view.opacity) / 100;
      for (const tile of this.tiles) {
        const context = tile.canvas.getContext("2d");
        const image = context.createImageData(tile.one.columns, tile.one.rows);
        const unit = tile.one.scale > 0 ? tile.one.unit / tile.one.scale : 0;
        for (let at = 0; at < tile.values.length; at += 1) {
          const shade = clamp(tile.values[at] * unit, -1, 1);
          const colour = 3 * Math.round(127.5 * (shade + 1));
          image.data.set(this.palette.subarray(colour, colour + 3), 4 * at);
          image.data[4 * at + 3] = strength * Math.abs(shade);
        }
        context.putImageData(image, 0, 0);
      }
    }

    read(point) {
      if (!point) return;
      view.point = point;
      const [x, y] = point;
      for (const { one, values, cross, said, width, height } of this.tiles) {
        const value = one.unit * values[Math.floor(y * one.rows) * one.columns + Math.floor(x * one.columns)];
        const share = one.largest > 0 ? Math.round((100 * value) / one.largest) : 0;
        said.textContent = `${short(value)} (${share} % of the largest) at column ${Math.floor(x * width)}, row ${Math.floor(y * height)}`;
        cross.hidden = false;
        cross.style.left = `${100 * x}%`;
        cross.style.top = `${100 * y}%`;
      }
    }
  }

  const frame = (data) => {
    if (!data.frame) return null;
    const { top, bottom, left, right } = data.frame;
    const style = `top:${100 * top}%;left:${100 * left}%;width:${100 * (right - left)}%;height:${100 * (bottom - top)}%`;
    return make("span", { class: "lp-frame", style, title: "the model sees this part" });
  };

  class Patches extends Piece {
    draw(data) {
      this.gone = new Set();
      const place = data.frame || { top: 0, bottom: 1, left: 0, right: 1 };
      const style =
        `top:${100 * place.top}%;left:${100 * place.left}%;width:${100 * (place.right - place.left)}%;` +
        `height:${100 * (place.bottom - place.top)}%;grid-template-columns:repeat(${data.columns},1fr);grid-template-rows:repeat(${data.rows},1fr)`;
      const grid = make("div", { class: "lp-grid", role: "group", "aria-label": `${data.rows} by ${data.columns} patches; arrow keys move, space takes one away`, style });
      this.buttons = [];
      for (let row = 0; row < data.rows; row += 1) {
        const line = make("div", { class: "lp-row" });
        for (let column = 0; column < data.columns; column += 1) line.append(this.patch(data, row, column));
        grid.append(line);
      }
      const back = make("button", { type: "button", class: "lp-small" }, "Bring all back");
      back.addEventListener("click", () => {
        this.gone.clear();
        this.mark();
      });
      this.append(make("div", { class: "lp-stage lp-patches" }, make("img", { src: data.picture, alt: data.title || "the picture" }), grid), back);
    }

    patch(data, row, column) {
      const number = row * data.columns + column;
      const button = make("button", {
        type: "button",
        tabindex: number === 0 ? 0 : -1,
        "aria-pressed": "false",
        "aria-label": `patch in row ${row + 1}, column ${column + 1}`,
      });
      button.addEventListener("click", () => {
        if (this.gone.has(number)) this.gone.delete(number);
        else this.gone.add(number);
        this.focusOn(number, false);
        this.mark();
      });
      button.addEventListener("keydown", (event) => {
        const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        if (!moves) return;
        event.preventDefault();
        const to = [clamp(row + moves[0], 0, data.rows - 1), clamp(column + moves[1], 0, data.columns - 1)];
        this.focusOn(to[0] * data.columns + to[1], true);
      });
      this.buttons.push(button);
      return button;
    }

    focusOn(number, move) {
      this.buttons.forEach((button, at) => button.setAttribute("tabindex", at === number ? 0 : -1));
      if (move) this.buttons[number].focus();
    }

    mark() {
      this.buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(this.gone.has(at))));
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => this.tell("patches", { gone: [...this.gone] }), 250);
    }
  }

  for (const [name, kind] of Object.entries({ note: Note, examples: Examples, maps: Maps, patches: Patches })) {
    if (!customElements.get(`learnprop-${name}`)) customElements.define(`learnprop-${name}`, kind);
  }
})();

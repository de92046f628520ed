// A picture to ask about: dropped, pasted, chosen as a file, or one of the stored images.

import { byId, make, picture } from "/page/dom.js";

/** Let a panel hold one picture; `changed` is called with it, or with null. */
export class PictureSlot {
  constructor(chosen, input, limits, changed, problem) {
    Object.assign(this, { chosen, limits, changed, problem, value: null, url: null });
    input.addEventListener("change", () => {
      if (input.files[0]) this.takeFile(input.files[0]);
      input.value = "";
    });
  }

  takeFile(file) {
    if (!file.type.startsWith("image/")) {
      return this.problem({ expected: "an image", found: file.type || "a file of another kind", where: file.name, remedy: "" });
    }
    if (file.size > this.limits.upload_bytes) {
      const found = `${(file.size / 1e6).toFixed(1)} MB`;
      return this.problem({ expected: `an image of at most ${this.limits.upload_bytes / 1e6} MB`, found, where: file.name, remedy: "make it smaller" });
    }
    this.#show({ file, name: file.name || "pasted image" }, URL.createObjectURL(file));
  }

  takeStored(image, name) {
    this.#show({ image_id: image.image_id, name }, image.thumbnail);
  }

  clear(quietly = false) {
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = this.value = null;
    this.chosen.hidden = true;
    this.chosen.replaceChildren();
    if (!quietly) this.changed(null);
  }

  #show(value, source) {
    this.clear(true);
    this.value = value;
    if (value.file) this.url = source;
    const remove = make("button", { type: "button", "aria-label": "Remove the image", onclick: () => this.clear() }, "×");
    this.chosen.replaceChildren(picture(source, false), make("span", {}, value.name), remove);
    this.chosen.hidden = false;
    this.changed(value);
  }
}

/** Take pictures that are dropped anywhere or pasted; `slot()` is the one of the panel that is seen. */
export function takeDropped(slot) {
  const veil = byId("drop");
  let depth = 0;
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (holdsFiles(event)) veil.hidden = ++depth === 0;
  });
  addEventListener("dragleave", (event) => {
    if (holdsFiles(event)) veil.hidden = --depth <= 0;
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    veil.hidden = true;
    if (event.dataTransfer.files[0]) slot().takeFile(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (file) {
      event.preventDefault();
      slot().takeFile(file);
    }
  });
}

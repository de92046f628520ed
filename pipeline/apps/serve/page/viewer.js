// The larger view of a result: arrows go on, Escape closes (as every dialog does), and a search can start from it.

import { byId, make, title } from "/page/dom.js";

export class Viewer {
  constructor(actions) {
    this.dialog = byId("viewer");
    this.images = [];
    this.at = 0;
    byId("viewer-close").addEventListener("click", () => this.dialog.close());
    byId("viewer-previous").addEventListener("click", () => this.move(-1));
    byId("viewer-next").addEventListener("click", () => this.move(1));
    for (const [name, action] of Object.entries(actions)) {
      byId(`viewer-${name}`).addEventListener("click", () => {
        this.dialog.close();
        action(this.images[this.at]);
      });
    }
    this.dialog.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) {
        event.preventDefault();
        this.move(step);
      }
    });
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
  }

  open(images, at) {
    this.images = images;
    this.#show(at);
    this.dialog.showModal();
    byId("viewer-close").focus();
  }

  move(step) {
    const aim = this.at + step;
    if (aim >= 0 && aim < this.images.length) this.#show(aim);
  }

  #show(at) {
    this.at = at;
    const image = this.images[at];
    const view = byId("viewer-picture");
    view.src = `${image.thumbnail}&size=large`;
    view.alt = title(image);
    byId("viewer-title").textContent = title(image);
    byId("viewer-captions").replaceChildren(...image.captions.slice(1).map((caption) => make("li", {}, caption)));
    const parts = [image.score === undefined ? "" : `score ${image.score.toFixed(3)}`, image.label, image.image_id];
    byId("viewer-note").textContent = parts.filter(Boolean).join(" · ");
    byId("viewer-previous").disabled = at === 0;
    byId("viewer-next").disabled = at === this.images.length - 1;
  }
}

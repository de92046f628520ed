// Results as columns, one a run: cards of images, lists of captions, bars of classes; arrows move through the cards.

import { make, picture, title } from "/page/dom.js";

const CAPTIONS = 9;

/** Show one column an answer; `open` is called with a card's images and its place. */
export function showImages(place, answers, open) {
  place.classList.toggle("two", answers.length > 1);
  const ids = answers.map((answer) => new Map(answer.images.map((image, rank) => [image.image_id, rank + 1])));
  place.replaceChildren(
    ...answers.map((answer, side) => {
      const place = (image, rank) => (answers.length > 1 ? comparison(rank + 1, ids[1 - side].get(image.image_id)) : null);
      const cards = answer.images.map((image, rank) => make("li", {}, card(image, rank, place(image, rank), () => open(answer, rank))));
      const shown = answer.captions?.slice(0, CAPTIONS) ?? [];
      const told = shown.length
        ? [make("h3", {}, "Captions"), captionList(shown, (id) => open(answer, id)), make("h3", {}, "Images")]
        : [];
      return make("section", { "aria-label": answer.run }, heading(answer, answers.length), ...told, make("ol", { class: "grid" }, ...cards));
    }),
  );
}

/** Show the probabilities of classes, one column an answer. */
export function showBars(place, answers) {
  place.classList.toggle("two", answers.length > 1);
  place.replaceChildren(
    ...answers.map((answer) =>
      make("section", { "aria-label": answer.run }, heading(answer, answers.length), make("ol", { class: "bars" }, ...answer.classes.map(bar))),
    ),
  );
}

function heading(answer, columns) {
  return columns > 1 ? make("h2", {}, answer.run) : null;
}

/** Say how an image stands in the other run, where that differs: as seen and as spoken. */
function comparison(rank, other) {
  if (other === undefined) return ["only here", "not found by the other run"];
  return other === rank ? null : [`↔ ${other}`, `place ${other} in the other run`];
}

function card(image, rank, place, open) {
  const scored = image.score !== undefined;
  const score = scored ? make("span", { class: "score" }, `${rank + 1} · ${image.score.toFixed(3)}`) : null;
  if (score && place) score.append(make("span", { class: "both", title: place[1] }, place[0]));
  const label = scored ? `${rank + 1}: ${title(image)}, score ${image.score.toFixed(3)}${place ? `, ${place[1]}` : ""}` : title(image);
  const words = make("span", { class: "words" }, score, make("span", { class: "caption" }, image.captions.join(" · ") || title(image)));
  return make("button", { type: "button", class: "card", "aria-label": label, onclick: open }, picture(image.thumbnail), words);
}

function captionList(captions, open) {
  const lines = captions.map((caption) => {
    const words = caption.image_id
      ? make("button", { type: "button", onclick: () => open(caption.image_id) }, caption.caption)
      : caption.caption;
    return make("li", {}, make("span", { class: "note" }, caption.score.toFixed(3)), make("span", {}, words));
  });
  return make("ol", { class: "captions" }, ...lines);
}

function bar(each) {
  const filled = make("span", { class: "bar" });
  filled.style.width = `${100 * each.probability}%`;
  return make(
    "li",
    {},
    make("span", { class: "name", title: `cosine ${each.score.toFixed(3)}` }, each.name),
    make("span", { class: "track", "aria-hidden": "true" }, filled),
    make("span", { class: "share" }, `${(100 * each.probability).toFixed(1)} %`),
  );
}

/** Move the focus from card to card with the arrows, Home and End. */
export function moveWithArrows(place) {
  place.addEventListener("keydown", (event) => {
    const grid = event.target.closest(".grid");
    if (!event.target.classList.contains("card") || event.ctrlKey || event.metaKey || event.altKey) return;
    const cards = [...grid.querySelectorAll(".card")];
    const at = cards.indexOf(event.target);
    const columns = cards.filter((each) => each.offsetTop === cards[0].offsetTop).length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at, End: cards.length - 1 - at };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const aim = at + steps[event.key];
    const beside = grid.closest(".columns").querySelectorAll(".grid");
    if (aim < 0 && event.key === "ArrowUp") document.getElementById("query").focus();
    else if (columns === 1 && beside.length > 1 && /Left|Right/.test(event.key)) {
      const other = beside[event.key === "ArrowRight" ? 1 : 0].querySelectorAll(".card");
      other[Math.min(at, other.length - 1)]?.focus();
    } else cards[Math.max(0, Math.min(cards.length - 1, aim))].focus();
  });
}

// Elements are made here, and text enters them as text only: nothing that a user or a data set says becomes markup.

export const byId = (id) => document.getElementById(id);

/** Make an element: attributes by name, `on…` as listeners, children as elements or text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Show an error as a sentence, or hide the last one. */
export function showProblem(place, problem) {
  place.hidden = !problem;
  if (!problem) return place.replaceChildren();
  const { expected, found, where, remedy } = problem;
  const lead = make("strong", {}, where ? `${where}: ` : "");
  place.replaceChildren(lead, `expected ${expected}, found ${found}${remedy ? `; ${remedy}` : ""}.`);
}

/** Return a picture; one whose file is gone leaves its place empty. */
export function picture(source, lazy = true) {
  const gone = (event) => event.target.classList.add("gone");
  return make("img", { src: source, alt: "", loading: lazy ? "lazy" : undefined, decoding: "async", onerror: gone });
}

export const title = (image) => image.captions[0] || image.label || image.image_id;

// The page: two panels over the API. What is asked goes to the chosen run, and to the one beside it.

import * as api from "/page/api.js";
import { byId, make, picture, showProblem, title } from "/page/dom.js";
import { PictureSlot, takeDropped } from "/page/pictures.js";
import { moveWithArrows, showBars, showImages } from "/page/results.js";
import { Viewer } from "/page/viewer.js";

const TOP = 24;
const HINTS = 4;
const panels = ["search", "classes"];
const asked = { search: null, classes: null };
let known = [];

const chosenRuns = () => [byId("run").value, byId("beside").value].filter(Boolean);
const described = () => known.find((run) => run.name === byId("run").value);
const panel = () => panels.find((name) => !byId(`panel-${name}`).hidden);

function openPanel(name, focus = false) {
  for (const each of panels) {
    const tab = byId(`tab-${each}`);
    tab.setAttribute("aria-selected", String(each === name));
    tab.tabIndex = each === name ? 0 : -1;
    byId(`panel-${each}`).hidden = each !== name;
  }
  if (focus) byId(`tab-${name}`).focus();
}

/** Ask every chosen run; only the latest question of a panel is shown. */
async function askAll(name, ask, show) {
  asked[name]?.abort();
  const latest = (asked[name] = new AbortController());
  const results = byId(`${name}-results`);
  const start = performance.now();
  results.classList.add("busy");
  showProblem(byId(`${name}-problem`), null);
  try {
    const answers = await Promise.all(chosenRuns().map((run) => ask(run, latest.signal)));
    if (asked[name] !== latest) return;
    byId(`${name}-status`).textContent = `${show(answers)} · ${Math.round(performance.now() - start)}\u00a0ms`;
  } catch (problem) {
    if (asked[name] !== latest || problem.name === "AbortError") return;
    byId(`${name}-status`).textContent = "";
    results.replaceChildren();
    showProblem(byId(`${name}-problem`), problem.expected ? problem : { expected: "an answer", found: String(problem) });
  } finally {
    if (asked[name] === latest) results.classList.remove("busy");
  }
}

function forget(name) {
  asked[name]?.abort();
  asked[name] = null;
  showProblem(byId(`${name}-problem`), null);
  byId(`${name}-results`).classList.remove("busy");
}

function openFrom(answer, place) {
  if (typeof place === "number") return viewer.open(answer.images, place);
  const at = answer.images.findIndex((image) => image.image_id === place);
  if (at >= 0) return viewer.open(answer.images, at);
  const told = answer.captions.filter((caption) => caption.image_id === place).map((caption) => caption.caption);
  const path = `/api/image/${encodeURIComponent(place)}?run=${encodeURIComponent(answer.run)}`;
  return viewer.open([{ image_id: place, captions: told, label: "", thumbnail: path }], 0);
}

function showFound(what) {
  return (answers) => {
    byId("hints").replaceChildren();
    showImages(byId("search-results"), answers, openFrom);
    const best = answers.map((answer) => answer.images[0]?.score.toFixed(3)).join(" and ");
    return `${answers[0].images.length} images for ${what}, best score ${best}`;
  };
}

async function searchText() {
  const text = byId("query").value.trim();
  if (!text) return browse();
  searchSlot.clear(true);
  history.replaceState(null, "", `#${new URLSearchParams({ q: text })}`);
  document.title = `${text} · Search`;
  await askAll("search", (run, signal) => api.searchText(run, text, TOP, signal), showFound(`“${text}”`));
}

async function searchPicture(value) {
  if (!value) return browse();
  byId("query").value = "";
  history.replaceState(null, "", location.pathname);
  document.title = "Search";
  await askAll("search", (run, signal) => api.searchPicture(run, value, TOP, signal), showFound("this picture"));
}

/** Show some of what is there, as long as nothing is asked. */
async function browse() {
  forget("search");
  history.replaceState(null, "", location.pathname);
  const run = byId("run").value;
  const shown = await api.sample(run, TOP).catch((problem) => showProblem(byId("search-problem"), problem));
  if (!shown || byId("query").value.trim() || searchSlot.value || run !== byId("run").value) return;
  const told = shown.images.flatMap((image) => image.captions.slice(0, 1));
  const step = Math.max(1, Math.floor(told.length / HINTS));
  const tries = [...new Set(told.filter((_, at) => at % step === 0))].slice(0, HINTS);
  const hint = (text) => make("button", { type: "button", onclick: () => ((byId("query").value = text), searchText()) }, text);
  byId("hints").replaceChildren(...(tries.length ? ["Try", ...tries.map(hint)] : []));
  byId("search-status").textContent = `${shown.total.toLocaleString("en")} images; some of them:`;
  showImages(byId("search-results"), [shown], openFrom);
}

async function classify() {
  const names = [...new Set(byId("names").value.split("\n").map((name) => name.trim()).filter(Boolean))];
  const missing = !classesSlot.value ? "a picture" : !names.length ? "class names, one a line" : "";
  if (missing) {
    forget("classes");
    byId("classes-results").replaceChildren();
    byId("classes-status").textContent = "";
    return showProblem(byId("classes-problem"), { expected: missing, found: "none" });
  }
  const template = byId("template").value;
  await askAll("classes", (run, signal) => api.classify(run, classesSlot.value, names, template, signal), (answers) => {
    showBars(byId("classes-results"), answers);
    byId("classes-results").scrollIntoView({ block: "nearest" });
    const best = answers.map((answer) => `${answer.classes[0].name} (${(100 * answer.classes[0].probability).toFixed(1)} %)`);
    return `Most probable: ${[...new Set(best)].join(" and ")}`;
  });
}

async function fillStrip() {
  const shown = await api.sample(byId("run").value, 14).catch(() => ({ images: [] }));
  const choose = (image) => make("button", { type: "button", "aria-label": title(image), onclick: () => classesSlot.takeStored(image, title(image)) }, picture(image.thumbnail));
  byId("strip").replaceChildren(...shown.images.map((image) => make("li", {}, choose(image))));
}

function pictureForClasses(value) {
  byId("well-hint").hidden = Boolean(value);
  if (value) return classify();
  forget("classes");
  byId("classes-results").replaceChildren();
  byId("classes-status").textContent = "";
}

function runChanged() {
  const run = described();
  for (const option of byId("beside").options) option.disabled = option.value === run.name;
  if (byId("beside").value === run.name) byId("beside").value = "";
  if (!byId("names").value.trim()) byId("names").value = run.labels.slice(0, 20).join("\n");
  byId("brand").textContent = run.dataset.name || run.name;
  byId("brand").title = `${run.method}: ${run.encoders.image.join(", ")} and ${run.encoders.text.join(", ")}`;
  byId("credit").textContent = [run.dataset.attribution, run.dataset.licence && `Licence: ${run.dataset.licence}`].filter(Boolean).join(". ");
  fillStrip();
  askAgain();
}

function askAgain() {
  if (searchSlot.value) searchPicture(searchSlot.value);
  else searchText();
  if (classesSlot.value) classify();
}

function useKeys() {
  addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, dialog");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      openPanel("search");
      byId("query").focus();
      byId("query").select();
    }
  });
  byId("query").addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") {
      event.preventDefault();
      byId("search-results").querySelector(".card")?.focus();
    }
  });
  byId("tab-search").parentElement.addEventListener("keydown", (event) => {
    if (/^Arrow(Left|Right)$/.test(event.key)) openPanel(panels[1 - panels.indexOf(panel())], true);
  });
  moveWithArrows(byId("search-results"));
}

const limits = { upload_bytes: 10_000_000 };
const slotOf = (name, changed) =>
  new PictureSlot(byId(`${name}-chosen`), byId(`${name}-file`), limits, changed, (problem) => showProblem(byId(`${name}-problem`), problem));
const searchSlot = slotOf("search", searchPicture);
const classesSlot = slotOf("classes", pictureForClasses);
const viewer = new Viewer({
  similar: (image) => (openPanel("search"), searchSlot.takeStored(image, title(image))),
  classify: (image) => (openPanel("classes"), classesSlot.takeStored(image, title(image))),
});

async function start() {
  const told = await api.runs();
  known = told.runs;
  Object.assign(limits, told.limits);
  const option = (run) => make("option", { value: run.name }, run.name);
  byId("run").replaceChildren(...known.map(option));
  byId("beside").replaceChildren(make("option", { value: "" }, "nothing"), ...known.map(option));
  byId("runs").hidden = known.length < 2;
  byId("query").value = new URLSearchParams(location.hash.slice(1)).get("q") ?? "";
  for (const name of panels) byId(`tab-${name}`).addEventListener("click", () => openPanel(name));
  byId("search").addEventListener("submit", (event) => (event.preventDefault(), searchText()));
  byId("query").addEventListener("search", () => byId("query").value || searchSlot.value || browse());
  byId("classify").addEventListener("submit", (event) => (event.preventDefault(), classify()));
  byId("run").addEventListener("change", runChanged);
  byId("beside").addEventListener("change", askAgain);
  takeDropped(() => (panel() === "search" ? searchSlot : classesSlot));
  useKeys();
  runChanged();
}

start().catch((problem) => showProblem(byId("search-problem"), problem.expected ? problem : { expected: "an answer", found: String(problem) }));

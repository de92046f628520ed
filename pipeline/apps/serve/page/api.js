// The API: every call gives its answer or throws a problem {expected, found, where, remedy}.

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw { expected: "an answer of the server", found: "none", where: "", remedy: "see whether `pipeline serve` still runs" };
  }
  const answer = await response.json();
  if (!response.ok) throw answer;
  return answer;
}

const form = (fields) => {
  const body = new FormData();
  for (const [name, value] of fields) if (value !== undefined) body.append(name, value);
  return { method: "POST", body };
};

/** A picture is {file} or {image_id}, as form fields. */
const pictureFields = (picture) => (picture.file ? [["image", picture.file]] : [["image_id", picture.image_id]]);

export const runs = () => ask("/api/runs");
export const sample = (run, count) => ask(`/api/sample?count=${count}&run=${encodeURIComponent(run)}`);

export const searchText = (run, text, top, signal) =>
  ask("/api/search", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ text, top, run }),
    signal,
  });

export const searchPicture = (run, picture, top, signal) =>
  ask("/api/search/image", { ...form([...pictureFields(picture), ["top", top], ["run", run]]), signal });

export const classify = (run, picture, names, template, signal) => {
  const classes = names.map((name) => ["classes", name]);
  return ask("/api/zero_shot", { ...form([...pictureFields(picture), ...classes, ["template", template], ["run", run]]), signal });
};

"""Class names and templates to prompts, for zero-shot classification."""

from collections.abc import Mapping, Sequence

from pipeline.errors import UserError

TEMPLATES = ("a photo of a {c}.",)


def class_prompts(
    classes: Sequence[str], templates: Sequence[str] | Mapping[str, Sequence[str]]
) -> tuple[list[str], list[int]]:
    """Return the prompts of all classes and the position of the class that each belongs to.

    Args:
        classes: C names.
        templates: Sentences with `{c}` or `{}` where the name goes, or class → its own prompts.

    Raises:
        UserError: No class, a class twice or without a prompt, or one text in place of a list.
    """
    if isinstance(classes, str) or not classes or len(set(classes)) < len(classes):
        found = "one text" if isinstance(classes, str) else repr(list(classes))
        raise UserError(expected="a list of class names, each once", found=found)
    if isinstance(templates, str):
        raise UserError(expected="a list of templates", found="one text", remedy="write [template]")
    if isinstance(templates, Mapping):
        by_class = [list(templates.get(name, ())) for name in classes]
    else:
        by_class = [[each.replace("{c}", name).replace("{}", name) for each in templates] for name in classes]
    missing = [name for name, prompts in zip(classes, by_class, strict=True) if not prompts]
    if missing:
        raise UserError(expected="a prompt for each class", found=f"none for {', '.join(missing[:5])}")
    flat = [(prompt, place) for place, prompts in enumerate(by_class) for prompt in prompts]
    return [prompt for prompt, _ in flat], [place for _, place in flat]

"""What the API takes and gives, as pydantic models; the OpenAPI document is made of them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from pipeline.apps.serve.limits import CLASSES, ID_CHARACTERS, NAME_CHARACTERS, TEXT_CHARACTERS, TOP

Name = Annotated[str, StringConstraints(min_length=1, max_length=NAME_CHARACTERS, pattern=r"\S")]
Identity = Annotated[str, StringConstraints(min_length=1, max_length=ID_CHARACTERS)]
Top = Annotated[int, Field(ge=1, le=TOP, description="How many results.")]
RunName = Annotated[Identity | None, Field(description="One of /api/runs; the first where not given.")]
Seed = Annotated[int | None, Field(description="One of the run's seeds; the first where not given.")]


class TextQuery(BaseModel):
    """A search by text."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: Annotated[str, StringConstraints(min_length=1, max_length=TEXT_CHARACTERS, pattern=r"\S")]
    top: Top = 12
    run: RunName = None
    seed: Seed = None


class PictureForm(BaseModel):
    """Fields of a form that asks about a picture: an uploaded `image`, or the id of a stored one."""

    model_config = ConfigDict(extra="forbid")
    image_id: Annotated[Identity | None, Field(description="A stored image, in place of an upload.")] = None
    run: RunName = None
    seed: Seed = None


class PictureQuery(PictureForm):
    """A search by picture."""

    top: Top = 12


class ClassQuery(PictureForm):
    """A zero-shot question."""

    classes: Annotated[
        list[Name],
        Field(
            min_length=1,
            max_length=CLASSES,
            description="Class names, one a field.",
            json_schema_extra={"uniqueItems": True},
        ),
    ]
    template: Annotated[Name, Field(description="Sentence with {c} or {} where the name goes.")] = "a photo of a {c}."

    @field_validator("template")
    @classmethod
    def _holds_a_place(cls, value: str) -> str:
        if "{c}" not in value and "{}" not in value:
            raise ValueError("a template with {c} or {} where the class name goes")
        return value

    @field_validator("classes")
    @classmethod
    def _once_each(cls, value: list[str]) -> list[str]:
        names = [name.strip() for name in value]
        if len(set(names)) < len(names):
            raise ValueError("class names, each once")
        return names


class Image(BaseModel):
    """A stored image."""

    image_id: str
    captions: list[str]
    label: str
    thumbnail: str
    """Path of its picture; add `&size=large` for more pixels."""


class FoundImage(Image):
    """A found image."""

    score: float
    """Cosine with the query."""


class FoundCaption(BaseModel):
    """A found caption."""

    caption_id: str
    caption: str
    image_id: str
    score: float


class Spent(BaseModel):
    """Milliseconds, for all that was asked together with this."""

    encode: float
    search: float


class SearchAnswer(BaseModel):
    """What a search found, best first."""

    run: str
    seed: int
    images: list[FoundImage]
    captions: list[FoundCaption]
    """Only for a picture."""
    milliseconds: Spent


class ClassProbability(BaseModel):
    """One class."""

    name: str
    probability: float
    score: float
    """Cosine of picture and class."""


class ClassAnswer(BaseModel):
    """Probabilities of the classes, most probable first; they add up to 1."""

    run: str
    seed: int
    template: str
    temperature: float
    """What cosines are divided by before the softmax."""
    temperature_source: str
    classes: list[ClassProbability]
    milliseconds: Spent


class RunAnswer(BaseModel):
    """A run that is served."""

    name: str
    method: str
    seeds: list[int]
    dim: int
    encoders: dict[str, list[str]]
    layers: dict[str, list[str]]
    images: int
    captions: int
    labels: list[str]
    can: dict[str, bool]
    """Side → whether new texts or images can be encoded."""
    dataset: dict[str, str]
    """name, licence and attribution."""


class RunsAnswer(BaseModel):
    """All that is served, and the limits of questions."""

    runs: list[RunAnswer]
    limits: dict[str, int]


class SampleAnswer(BaseModel):
    """Images from all over the store."""

    run: str
    total: int
    images: list[Image]


class Health(BaseModel):
    """Whether the server works."""

    status: str
    version: str
    waiting: int
    """Questions in the queue."""


def form_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI request body of a multipart form: a model's fields and the file `image`."""
    schema = model.model_json_schema()
    schema["properties"]["image"] = {"type": "string", "format": "binary", "description": "The picture's file."}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}

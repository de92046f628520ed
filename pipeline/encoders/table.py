"""The table of encoder families: a family is one module and one line here, imported when it is asked for."""

ENCODERS: dict[str, str] = {
    "timm": "pipeline.encoders.timm_family:load",
    "open_clip": "pipeline.encoders.open_clip_family:load",
    "hf": "pipeline.encoders.hf_family:load",
    "st": "pipeline.encoders.st_family:load",
    "package": "pipeline.encoders.packages:load",
}
"""Family → module and function, imported when the family is asked for."""

"""The forms of an export by name; each is written by a function that is loaded when it is asked for."""

FORMATS = {
    "folder": "pipeline.apps.export.run:write_folder",
    "onnx": "pipeline.apps.export.onnx_projectors:write_onnx",
    "sentence-transformers": "pipeline.apps.export.sentence_transformer:write_sentence_transformer",
}

"""Frozen encoders: one call loads any of them, one pass gives every layer, a key says what changes the bytes.

    from pipeline.encoders.load import load_encoder

    encoder = load_encoder("package:efficientnet-lite0")
    features = encoder.encode([encoder.prepare(image)], encoder.resolve_layers("all"))

Nothing heavy is imported here; `pipeline.encoders.base` holds the contract, `pipeline.encoders.load` the table of
families.
"""

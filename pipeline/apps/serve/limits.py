"""What the application takes and what it refuses, in one place; used by every module here and told by /api/runs."""

TEXT_CHARACTERS = 2000
"""Of a query; encoders cut long before."""
TOP = 200
"""Results that can be asked for at once."""
SAMPLE = 60
"""Images of /api/sample."""
CLASSES = 200
"""Class names of one zero-shot question."""
NAME_CHARACTERS = 200
"""Of a class name and of a template."""
ID_CHARACTERS = 1000
"""Of an image's id and a run's name."""
UPLOAD_BYTES = 10_000_000
"""Of an uploaded picture, as a file."""
UPLOAD_PIXELS = 50_000_000
"""Of an uploaded picture, decoded: 150 MB as RGB."""
UPLOADS_AT_ONCE = 4
"""Pictures held in memory at a time; others wait before their first byte is read."""
UPLOAD_SECONDS = 30
"""For the whole body to arrive."""
BODY_BYTES = 64_000
"""Of a request without a picture, and of all that surrounds a picture."""
QUEUE = 256
"""Questions that wait for the encoders; one more is answered 503."""
BATCH = 32
"""Questions of one kind that are encoded together."""
RETRY_SECONDS = 1
"""What a 503 advises."""
SEEDS_KEPT = 4
"""Seeds of a run whose embeddings stay in memory."""
THUMBNAIL_EDGES = {"small": 384, "large": 1280}
"""Longest edge in pixels; nothing is enlarged."""
THUMBNAIL_BYTES = 64_000_000
"""Of finished thumbnails kept in memory."""

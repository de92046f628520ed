"""Folders at a URL (`s3://`, `gs://`, whatever fsspec opens), used by stores, data sets and runs through local paths.

A URL is *bound* to a folder of the local cache; all other code keeps to local paths and calls one of the functions
below where bytes have to come or go. For a path that is not bound they do nothing, at the price of one look at its
text: nothing of fsspec is imported, nothing is asked of the disk.

- `pipeline.remote.binding`: `bind(url)` → folder, `address(path)` → URL for people and records.
- `pipeline.remote.mirror`: what is at the URL, what of it is here, bringing one file.
- `pipeline.remote.folder`: whole small folders (runs, reports), single pictures.
- `pipeline.remote.lease`: a claim that others see, where there is no lock.
"""

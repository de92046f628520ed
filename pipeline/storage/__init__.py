"""Storages: a folder of named bytes on this machine or in an object store, under one contract.

    root = open_storage("s3://bucket/features/flickr8k/vit")     # or a folder
    root.put_new("store.json", data)                             # False if somebody else was first

- `pipeline.storage.contract.Storage`: what a store, a data set, a run and a report receive.
- `pipeline.storage.local.open_storage`: the one place where a text or a path becomes a storage.
- `pipeline.storage.leases`: what one worker at a time holds, taken over from the dead; the same in both kinds.
"""

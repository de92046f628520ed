"""The feature store: the only thing that extract, align and evaluate share.

One storage per (data set, encoder): shards of rows with every asked layer, side tables and a manifest that is written
last. Import what you need from its module, so that nothing heavy loads unasked:

- `pipeline.store.key.FeatureKey`: everything that changes the stored bytes.
- `pipeline.store.manifest.Header`, `Manifest`: what a store says about itself.
- `pipeline.store.samples.Samples`, `join`: ids, image ids, splits, labels and content of the rows; rows joined by id.
- `pipeline.store.writer.StoreWriter`: claim, commit, finish.
- `pipeline.store.reader.FeatureStore`: open, read, batches.
- `pipeline.store.views`: the stores of a modality as one table; rows for a `DataLoader`.
- `pipeline.store.events`: what happens while a store is made, and how far it is.
- `inspect`, `cleaning`, `interop`: what else `pipeline store ...` runs.
"""

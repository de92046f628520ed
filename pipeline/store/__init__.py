"""The feature store: the only thing that extract, align and evaluate share.

One folder per (data set, encoder): shards of rows with every asked layer, side tables and a manifest that is written
last. Import what you need from its module, so that nothing heavy loads unasked:

- `pipeline.store.key.FeatureKey`: everything that changes the stored bytes.
- `pipeline.store.manifest.Header`, `Manifest`: what a store says about itself.
- `pipeline.store.samples.Samples`: ids, image ids, splits, labels and content of the rows.
- `pipeline.store.writer.StoreWriter`: claim, commit, finish.
- `pipeline.store.reader.FeatureStore`: open, read, batches.
- `pipeline.store.distant`: what a store at a URL brings and sends, and in which order.
- `pipeline.store.join.join`: rows of images and rows of captions, joined by id.
- `pipeline.store.inspect`: what `pipeline store ls|verify|diff|du|gc|status|convert|ingest` run.
"""

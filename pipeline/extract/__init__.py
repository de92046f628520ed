"""Extract, stage 1 of 3: a raw data set and a frozen encoder become a feature store. Run by `pipeline extract`.

`pipeline.extract.run.extract(config)` does the work, `pipeline.extract.datasets` makes and reads raw data sets.
"""

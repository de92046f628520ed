"""Raw data sets: one layout on the disk (`layout`), one writer (`writing`), one importer a file (`importers`)."""

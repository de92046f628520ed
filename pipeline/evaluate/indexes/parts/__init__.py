"""An index that many processes build: `plan` and `train` (step 1), `add` (step 2, a part each), `merge` (step 3)."""

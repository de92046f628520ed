"""The commands, one file each. `pipeline.cli` mounts them; a module here loads a stage only when its command runs."""

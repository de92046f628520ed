"""Projectors: maps from one frozen encoder's features to the shared space, and the runs that hold them.

`base` is the contract, `table` the choice by name, `files` the files, `run_record` a whole trained run, `closed_form`
the maps that need no training. Nothing heavy is imported here.
"""

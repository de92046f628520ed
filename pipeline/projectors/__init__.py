"""Projectors: maps from one frozen encoder's features to the shared space, and the runs that hold them.

`base` is the contract with the plain maps, `run_record` the choice by name, the files and a whole trained run,
`closed_form` what needs no training. Nothing heavy is imported here.
"""

"""Many small runs and what they say: sweeps over method × pairs × captions × layers × seed, and the study made of them.

Run by `pipeline sweep`, `pipeline study` and `stages/study.py`.
"""

"""The slots of one training step, one file each, and the plain table of losses (`pipeline.align.losses.table`).

    batch → (mix) → (perturb) → project → similarity → (targets T) → CE per direction
          → (direction weights) → + λ·structure

`pipeline.align.objective` puts the slots together; nothing heavy is imported here.
"""

"""What training does to its slices: how often each is drawn (:mod:`.balance`), how it is changed
(:mod:`.recipe` from the configuration, :mod:`.augmentations` draw, :mod:`.transforms` apply).

Door: :func:`.recipe.build_augmentations`.
"""

"""What lesion predictions are worth: COCO's AP (:mod:`.coco`), the authors' per-image AP
(:mod:`.per_image_ap`), Dice of lesion maps (:mod:`.dice`), and how much of the lung is ill
(:mod:`.burden`, written by :mod:`.burden_files`).
"""

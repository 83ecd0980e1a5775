"""From raw data to a trained, evaluated model that predicts, with the lines of docs/data.md.

``python -m tests.walks [--only NAME ...] [--output FILE.json]`` makes small raw trees as the public
sets and hospitals lay theirs, types the lines of the page as they stand, in their order, in a fresh
folder, and looks at what came of them: exit codes, how many slices, patients and lesions were
prepared, a checkpoint, metrics, a prediction. Only what makes a training short is put behind its
line. Sets that nobody may copy are walked where ``../shared/data/real`` has them.
"""

"""Training stages: each file is a stage's data, loss and evaluation; the loop is `train/loop.py`."""

"""Run scripts of VideoMAE, VideoMAE V2, VideoMAE-Action-Detection and simple-tad -> recipes. Text only: nothing is run.

Knows the originals' options by name, default and meaning, and our recipe keys. Imports no torch.
"""

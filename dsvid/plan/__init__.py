"""What a run will need, by formula, before anything is taken: memory, FLOPs, time, disk, loader cores.

Pure functions of a recipe, a DeepSpeed JSON and a number of GPUs; builds no weights, touches no device.
"""

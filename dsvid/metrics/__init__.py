"""Functions of arrays, and of the score files that other systems write: no devices, no ranks."""

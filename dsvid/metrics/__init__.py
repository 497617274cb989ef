"""Pure functions of arrays: no files, no devices, no ranks."""

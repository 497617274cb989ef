"""From list files to batches of uint8 clips: manifest, sampling, decode, augment, order, loader, built-in clips."""

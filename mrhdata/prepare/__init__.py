"""Steps from volume to volume before training: ``maps`` makes parameter maps of raw MRI signals."""

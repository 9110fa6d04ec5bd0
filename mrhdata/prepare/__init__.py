"""Steps from volume to volume before training.

``maps`` makes parameter maps of raw MRI signals; ``gradients`` says how a diffusion scan was weighted, and
``diffusion`` averages and fits it. ``bias`` takes uneven illumination out. ``registration`` and ``sections`` find
transforms, ``resampling`` applies them, ``lps`` reads and writes them and ``quality`` judges them.
``displacing`` misregisters volumes on purpose.
"""

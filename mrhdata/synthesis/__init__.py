"""Training images of random contrast, drawn from label maps.

A sample flows through the files in this order::

    label map --geometry--> labels of the patch --structures--> classes
        --contrast--> mean and spread of each class --intensity--> image without artefacts
        --artefacts--> bias, motion, ringing --resolution--> slices with noise, on the grid of the output
        --surroundings--> head, or brain only --intensity--> values from 0 to 1

The labels leave this flow after the first step, so no intensity step changes them. ``config`` has every range, and
``synthesizer`` runs the steps. All random numbers come from one generator on the processor (``draws``), so a seed
gives the same sample on every device. Blurring, slices, interpolation and k-space are matrices along one axis
(``axes``).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

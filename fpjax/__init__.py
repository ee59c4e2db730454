"""Can a score-based generative model reproduce one identifiable training image?

The names in `__init__.pyi` are the Python interface; `launch.py` and the configs are the command line's. Each is
imported when it is first asked for, so that a part of the package does not wait for all of it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""cellbridge: what would this very cell look like under compound X, and can I believe it?"""

from cellbridge._compat import install as _install

_install()

__version__ = "0.1.0"

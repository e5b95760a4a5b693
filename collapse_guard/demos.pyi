from demos import *
from demos import __all__ as __all__

from demos import *

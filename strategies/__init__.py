"""One module for each published method, and nothing but the method in it.

The registry imports every module of this package through the entry-point group ``illava_lab.strategies``, so a new file
is found without being listed anywhere. A module here may import from `illava_lab`, never the other way round.
"""

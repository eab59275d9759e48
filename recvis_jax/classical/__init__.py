"""Recognition from 1999 to 2012: local descriptors, a vocabulary, an encoding. Pure functions on arrays."""

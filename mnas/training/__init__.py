"""Data, the training of supernets and of single networks, and the directory that a run can be
continued from."""
